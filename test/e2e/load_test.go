package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/client"
)

// rawConn is a connection as any gRPC client has it.
func rawConn(t *testing.T, conf client.Config) *grpc.ClientConn {
	t.Helper()
	n, err := conf.Node("")
	if err != nil {
		t.Fatal(err)
	}
	tlsConf, err := n.TLS()
	if err != nil {
		t.Fatal(err)
	}
	tlsConf.ServerName = "joblet"
	c, err := grpc.NewClient("passthrough:///"+n.Address, grpc.WithTransportCredentials(credentials.NewTLS(tlsConf)),
		grpc.WithDefaultCallOptions(grpc.MaxCallSendMsgSize(256<<20), grpc.MaxCallRecvMsgSize(128<<20)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// memory returns the daemon's resident memory in bytes, its threads, and the files
// that it has open.
func (d *daemon) memory(t *testing.T) (rss, threads, files int) {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d", d.cmd.Process.Pid)
	text, err := os.ReadFile(proc + "/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) > 1 && f[0] == "VmRSS:":
			rss, _ = strconv.Atoi(f[1])
		case len(f) > 1 && f[0] == "Threads:":
			threads, _ = strconv.Atoi(f[1])
		}
	}
	fds, err := os.ReadDir(proc + "/fd")
	if err != nil {
		t.Fatal(err)
	}
	return rss << 10, threads, len(fds)
}

// TestLoad: 200 clients, 20 mixed calls each, over mutual TLS; then half as many.
func TestLoad(t *testing.T) {
	t.Parallel()
	const clients, calls = 200, 20
	const names = 20                     // each for ten of them: one alone may not call as often
	const pause = 500 * time.Millisecond // of a client between two calls: 400 calls a second of all
	r := newRemoteDaemon(t, fmt.Sprintf("metrics-addr: unix:%s\n", filepath.Join(t.TempDir(), "metrics.sock")))
	conf, err := client.LoadConfig(r.bundle("admin"))
	if err != nil {
		t.Fatal(err)
	}
	var confs []client.Config
	for n := range names {
		name := fmt.Sprintf("client%d", n)
		r.issue(t, name, "maintainer")
		c, err := client.LoadConfig(r.bundle(name))
		if err != nil {
			t.Fatal(err)
		}
		confs = append(confs, c)
	}
	first, err := api.NewJobServiceClient(rawConn(t, conf)).RunJob(t.Context(), &api.RunJobRequest{Command: "echo", Args: []string{"hello"}})
	if err != nil {
		t.Fatal(err)
	}
	id := first.GetJobUuid()
	before, _, filesBefore := r.memory(t)
	scraper := r.scraper(t)
	goroutines := func() float64 { return scraper.scrape().value("go_goroutines") }
	goroutinesBefore := goroutines()

	load := func(calls int) (took []time.Duration, failed, limited int) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		var mu sync.Mutex
		var work, connected sync.WaitGroup
		connected.Add(clients)
		for n := range clients {
			conn := rawConn(t, confs[n%names])
			work.Go(func() {
				defer conn.Close()
				jobs, host := api.NewJobServiceClient(conn), api.NewMonitoringServiceClient(conn)
				time.Sleep(rand.N(4 * time.Second))
				if _, err := host.GetServerVersion(ctx, &api.EmptyRequest{}, grpc.WaitForReady(true)); err != nil { // on a slow machine the bound on new connections is met
					t.Error(err)
				}
				connected.Done()
				connected.Wait()
				time.Sleep(rand.N(pause))
				for i := range calls {
					var err error
					var status time.Duration
					switch k := (i + n) % 50; {
					case k == 0:
						_, err = jobs.RunJob(ctx, &api.RunJobRequest{Command: "true"})
					case k < 5:
						_, err = host.GetServerVersion(ctx, &api.EmptyRequest{})
					case k < 9:
						err = drain(jobs.QueryJobs(ctx, &api.QueryJobsRequest{Limit: 20}))
					case k < 13:
						err = drain(jobs.GetJobLogs(ctx, &api.GetJobLogsRequest{Uuid: id}))
					case k == 13:
						_, err = jobs.StopJob(ctx, &api.StopJobRequest{Uuid: id})
						if isCode(err, codes.FailedPrecondition) {
							err = nil // it has ended
						}
					default:
						start := time.Now()
						_, err = jobs.GetJobStatus(ctx, &api.GetJobStatusRequest{Uuid: id})
						status = time.Since(start)
					}
					mu.Lock()
					switch {
					case isCode(err, codes.ResourceExhausted):
						limited++
					case err != nil:
						if failed++; failed < 5 {
							t.Error(err)
						}
					case status > 0:
						took = append(took, status)
					}
					mu.Unlock()
					time.Sleep(pause/2 + rand.N(pause))
				}
			})
		}
		work.Wait()
		return took, failed, limited
	}
	took, failed, limited := load(calls)
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	if !eventually(time.Minute, func() bool {
		return r.rnx(t.Context(), "job", "list", "-q", "--status=PENDING,RUNNING,INITIALIZING").stdout == ""
	}) {
		t.Error("jobs have not ended")
	}
	after, threads, filesAfter := r.memory(t)
	t.Logf("%d calls by %d clients: GetJobStatus p50 %v, p99 %v, max %v of %d; %d failed, %d beyond a limit; memory %d MiB before, %d MiB after; %d threads; %v goroutines before, %v after; files %d, %d",
		clients*calls, clients, took[len(took)/2], p99, took[len(took)-1], len(took), failed, limited, before>>20, after>>20, threads, goroutinesBefore, goroutines(), filesBefore, filesAfter)
	// How fast it is depends on what else the host does: that is in the log.
	if !eventually(patience, func() bool { _, _, files := r.memory(t); return files <= filesBefore+10 }) {
		t.Errorf("%d files open, %d before", filesAfter, filesBefore)
	}
	if !eventually(patience, func() bool { return goroutines() <= goroutinesBefore+5 }) {
		t.Errorf("%v goroutines, %v before", goroutines(), goroutinesBefore)
	}
	// A second time takes no more than the first.
	load(calls / 2)
	if again, _, _ := r.memory(t); again > after+after/2+64<<20 {
		t.Errorf("memory grows: %d MiB, then %d MiB", after>>20, again>>20)
	}
}

func isCode(err error, code codes.Code) bool { return err != nil && status.Code(err) == code }

// drain reads a stream to its end.
func drain[T any](s grpc.ServerStreamingClient[T], err error) error {
	for err == nil {
		if _, err = s.Recv(); err != nil && err.Error() == "EOF" {
			return nil
		}
	}
	return err
}

// TestFuzzAPI sends random messages, valid and not, to every method for a while: no
// panic, no leak, and no process that was not asked for. JOBLET_TEST_FUZZ says
// for how long. It runs alone: in that time others would leave it few calls.
func TestFuzzAPI(t *testing.T) {
	limit := 5 * time.Second
	if s := os.Getenv("JOBLET_TEST_FUZZ"); s != "" {
		var err error
		if limit, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	r := newRemoteDaemon(t, "client-rate: 100000\n")
	conf, err := client.LoadConfig(r.bundle("admin"))
	if err != nil {
		t.Fatal(err)
	}
	conn := rawConn(t, conf)
	var methods []protoreflect.MethodDescriptor
	services := api.File_joblet_proto.Services()
	for i := range services.Len() {
		for k := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(k)
			if m.Name() != "BuildRuntime" { // a valid one would build for minutes
				methods = append(methods, m)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var ids atomic.Pointer[[]string]
	ids.Store(&[]string{"", "x", "../x", strings.Repeat("a", 1000), "00000000-0000-4000-8000-000000000000"})
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	var calls, internal atomic.Int64
	codesSeen := [17]atomic.Int64{}
	var work sync.WaitGroup
	for n := range 8 {
		rng := rand.New(rand.NewPCG(uint64(seed), uint64(n)))
		work.Go(func() {
			for ctx.Err() == nil {
				m := methods[rng.IntN(len(methods))]
				in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
				if err != nil {
					t.Error(err)
					return
				}
				request := in.New()
				scramble(rng, request, *ids.Load(), 0)
				call, end := context.WithTimeout(ctx, time.Second)
				answer, err := invoke(call, conn, m, request.Interface(), rng)
				end()
				calls.Add(1)
				code := status.Code(err)
				codesSeen[code%17].Add(1)
				if code == codes.Internal || code == codes.Unknown {
					if internal.Add(1) < 10 {
						t.Errorf("%s: %v for %.500v", m.FullName(), err, request.Interface())
					}
				}
				if run, ok := answer.(*api.RunJobResponse); ok && run.GetJobUuid() != "" {
					known := append(slices.Clone(*ids.Load()), run.GetJobUuid())
					if len(known) > 40 {
						known = known[len(known)-40:]
					}
					ids.Store(&known)
				}
			}
		})
	}
	work.Wait()
	var seen []string
	for c := range codesSeen {
		if n := codesSeen[c].Load(); n > 0 {
			seen = append(seen, fmt.Sprintf("%v %d", codes.Code(c), n))
		}
	}
	t.Logf("%d calls: %s", calls.Load(), strings.Join(seen, ", "))
	if r.cmd.ProcessState != nil || r.rnx(t.Context(), "version").status != 0 {
		t.Error("the daemon is gone")
	}
	if left, _ := filepath.Glob("/tmp/joblet-fuzz-*"); len(left) > 0 {
		t.Errorf("commands ran on the host: %q", left)
	}
}

// invoke calls a method of any kind and reads some answers.
func invoke(ctx context.Context, conn *grpc.ClientConn, m protoreflect.MethodDescriptor, request proto.Message, rng *rand.Rand) (proto.Message, error) {
	out, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		return nil, err
	}
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name()))
	if err != nil {
		return nil, err
	}
	if err := s.SendMsg(request); err == nil && m.IsStreamingClient() && rng.IntN(2) == 0 {
		_ = s.SendMsg(request) // out of turn
	}
	_ = s.CloseSend()
	var answer proto.Message
	for range 5 {
		next := out.New().Interface()
		if err := s.RecvMsg(next); err != nil {
			if err.Error() == "EOF" {
				err = nil
			}
			return answer, err
		}
		answer = next
		if !m.IsStreamingServer() {
			return answer, nil
		}
	}
	return answer, nil
}

// scramble fills a message at random: mostly with what makes sense.
func scramble(rng *rand.Rand, m protoreflect.Message, ids []string, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if rng.IntN(3) != 0 && f.Name() != "command" && f.Name() != "uuid" && f.Name() != "job_uuid" && f.Name() != "run" || depth > 3 {
			continue
		}
		switch {
		case f.IsMap():
			mm := m.Mutable(f).Map()
			for range rng.IntN(3) {
				if f.MapValue().Message() == nil {
					mm.Set(scalar(rng, f.MapKey(), ids).MapKey(), scalar(rng, f.MapValue(), ids))
				}
			}
		case f.IsList():
			l := m.Mutable(f).List()
			for range rng.IntN(4) {
				if f.Message() == nil {
					l.Append(scalar(rng, f, ids))
					continue
				}
				item := l.NewElement()
				scramble(rng, item.Message(), ids, depth+1)
				l.Append(item)
			}
		case f.Message() != nil:
			scramble(rng, m.Mutable(f).Message(), ids, depth+1)
		default:
			m.Set(f, scalar(rng, f, ids))
		}
	}
}

func scalar(rng *rand.Rand, f protoreflect.FieldDescriptor, ids []string) protoreflect.Value {
	n := []int64{0, 1, -1, 2, 100, 1000, 1 << 20, 1 << 31, -1 << 31, 1<<63 - 1, -1 << 63}[rng.IntN(11)]
	switch f.Kind() {
	case protoreflect.StringKind:
		if (f.Name() == "uuid" || f.Name() == "job_uuid") && rng.IntN(4) != 0 {
			return protoreflect.ValueOfString(ids[rng.IntN(len(ids))])
		}
		if f.Name() == "command" && rng.IntN(2) == 0 {
			return protoreflect.ValueOfString("true")
		}
		words := []string{"", "a", "true", "none", "touch", "/tmp/joblet-fuzz-x", "$(touch /tmp/joblet-fuzz-y)", "; touch /tmp/joblet-fuzz-z", "../..", "/etc/passwd", "\x00", "*", "+1s", "* * * * *", "ä\U0001f600", "A=b", strings.Repeat("x", 5000), "2026-01-01T00:00:00Z", "-1"}
		return protoreflect.ValueOfString(words[rng.IntN(len(words))])
	case protoreflect.BytesKind:
		b := make([]byte, rng.IntN(2000))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return protoreflect.ValueOfBytes(b)
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rng.IntN(2) == 0)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(float32(n))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(int32(n)))
	}
	return protoreflect.ValueOfInt64(n)
}
