package server

import (
	"context"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// receiveTime is how long a client may take to send the request of a call, or
	// the first message of one that has several.
	receiveTime = 5 * time.Minute

	// idleLimiter is how long a client's limiter is kept that nobody uses.
	idleLimiter = 10 * time.Minute
)

// limiter bounds what clients other than this host's root ask, each by its name.
type limiter struct {
	settings func() *Settings
	intake   *intake
	replies  *responses

	mu      sync.Mutex // protects what follows
	clients map[string]*clientLimit
	swept   time.Time
}

// clientLimit is what one client has taken.
type clientLimit struct {
	bucket *rate.Limiter
	calls  int // under way
	used   time.Time
}

// tap decides on a call before anything of its request is read.
func (l *limiter) tap(ctx context.Context, _ *tap.Info) (context.Context, error) {
	c := callerOf(ctx)
	if c.cert == nil && c.uid == 0 { // this host's root
		return l.replies.begin(ctx, c.conn, c.name(), func() {}), nil
	}
	client, err := l.enter(c.name())
	if err != nil {
		return ctx, err
	}
	ctx = l.replies.begin(ctx, c.conn, c.name(), func() { l.leave(client) })
	return l.intake.begin(ctx, c.conn, c.name(), receiveTime), nil
}

func (l *limiter) enter(name string) (*clientLimit, error) {
	set := l.settings()
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Sub(l.swept) > idleLimiter {
		l.swept = now
		for name, c := range l.clients {
			if c.calls == 0 && now.Sub(c.used) > idleLimiter {
				delete(l.clients, name)
			}
		}
	}
	c := l.clients[name]
	if c == nil {
		c = &clientLimit{bucket: rate.NewLimiter(rate.Limit(set.ClientRate), 2*set.ClientRate)}
		l.clients[name] = c
	}
	if c.bucket.Limit() != rate.Limit(set.ClientRate) {
		c.bucket.SetLimitAt(now, rate.Limit(set.ClientRate))
		c.bucket.SetBurstAt(now, 2*set.ClientRate)
	}
	c.used = now
	if c.calls >= set.ClientCalls {
		return nil, tooMuch(0, "%s has %d calls under way, as many as the daemon allows (client-calls)", name, c.calls)
	}
	if r := c.bucket.ReserveN(now, 1); r.DelayFrom(now) > 0 {
		wait := r.DelayFrom(now)
		r.CancelAt(now)
		return nil, tooMuch(wait, "%s makes more calls than the daemon allows (client-rate %d a second)", name, set.ClientRate)
	}
	c.calls++
	return c, nil
}

func (l *limiter) leave(c *clientLimit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.calls--
}

// tooMuch is the answer for a client that asks too much, and, if wait is not 0,
// when to ask again.
func tooMuch(wait time.Duration, format string, args ...any) error {
	s := status.Newf(codes.ResourceExhausted, format, args...)
	info := &errdetails.ErrorInfo{Domain: "joblet", Reason: "RESOURCE_EXHAUSTED"}
	var err error
	if wait > 0 {
		s, err = s.WithDetails(info, &errdetails.RetryInfo{RetryDelay: durationpb.New(wait)})
	} else {
		s, err = s.WithDetails(info)
	}
	if err != nil {
		return status.Errorf(codes.ResourceExhausted, format, args...)
	}
	return s.Err()
}
