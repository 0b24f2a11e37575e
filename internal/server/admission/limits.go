package admission

import (
	"sync"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/joblet/joblet"
)

const (
	// receiveTime is how long a client may take to send the request of a call, or
	// the first message of one that has several.
	receiveTime = 5 * time.Minute

	// idleLimiter is how long an unused limiter of a client is kept.
	idleLimiter = 10 * time.Minute
)

// limiter bounds what clients other than this host's root ask, each by its name.
type limiter struct {
	limits func() Limits

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

func (l *limiter) enter(name string) (*clientLimit, error) {
	set := l.limits()
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
		return nil, tooMuch(0, "%s has %d calls in flight, the maximum (client-calls)", name, c.calls)
	}
	if r := c.bucket.ReserveN(now, 1); r.DelayFrom(now) > 0 {
		wait := r.DelayFrom(now)
		r.CancelAt(now)
		return nil, tooMuch(wait, "%s exceeds the maximum of %d calls per second (client-rate)", name, set.ClientRate)
	}
	c.calls++
	return c, nil
}

func (l *limiter) leave(c *clientLimit) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.calls--
}

// tooMuchError is the answer for a client that asks too much. Its kind is
// ResourceExhausted.
type tooMuchError struct {
	error
	wait time.Duration // after which to ask again; 0: not known
}

func tooMuch(wait time.Duration, format string, args ...any) error {
	return &tooMuchError{joblet.Errorf(joblet.ResourceExhausted, format, args...), wait}
}

// Unwrap returns what says of which kind the error is.
func (e *tooMuchError) Unwrap() error { return e.error }

// GRPCStatus says when to ask again, too.
func (e *tooMuchError) GRPCStatus() *status.Status {
	s := status.New(codes.ResourceExhausted, e.Error())
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Domain: "joblet", Reason: "RESOURCE_EXHAUSTED"}}
	if e.wait > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(e.wait)})
	}
	if detailed, err := s.WithDetails(details...); err == nil {
		return detailed
	}
	return s
}
