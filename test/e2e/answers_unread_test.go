package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/client"
)

const (
	// maxGrowth is what 1,000 streams may take that nobody reads.
	maxGrowth   = 100 << 20
	unreadAll   = 1000
	unreadShort = 250 // of calls whose answers are short, or as those of another method
	unreadFew   = 50  // of calls that start a process each

	// callEvery is how often another client calls: it need not take a processor for itself.
	callEvery = 100 * time.Millisecond

	// servedWithin is how long another client's call may take beside them, on a machine
	// that is busy with other tests.
	servedWithin = 30 * time.Second

	// unreadDaemons is how many daemons share the cases of a test: after each case a
	// daemon has to rest for ten seconds before it gives memory back.
	unreadDaemons = 3
)

// unreadCase is a subtest of a daemon that has done nothing else.
type unreadCase struct {
	name string
	run  func(*testing.T, *unread)
}

// runUnread runs the cases on daemons that work side by side.
func runUnread(t *testing.T, cases []unreadCase) {
	for n := range unreadDaemons {
		t.Run(fmt.Sprintf("daemon %d", n+1), func(t *testing.T) {
			t.Parallel()
			u := newUnread(t)
			for i := n; i < len(cases); i += unreadDaemons {
				t.Run(cases[i].name, func(t *testing.T) { cases[i].run(t, u) })
			}
		})
	}
}

// unread is a daemon, as it is released: the race detector takes memory itself.
type unread struct {
	*remoteDaemon
	job, terminal, key string
	base               int // its memory at first
}

func newUnread(t *testing.T) *unread {
	t.Helper()
	r := &remoteDaemon{dir: t.TempDir(), address: freeAddress(t)}
	r.joblet(t, "init", "--out="+r.bundle("admin"))
	r.configure(t, "client-rate: 100000\nclient-calls: 2000\n")
	r.daemon = withState(t, "--config="+filepath.Join(r.dir, "joblet-config.yml"))
	r.serve(t)
	r.issue(t, "eve", "maintainer")
	r.issue(t, "bob", "reader")
	u := &unread{remoteDaemon: r}
	const output = "head -c 8388608 /dev/zero | tr '\\0' '\\n' | sed s/$/xxxxxxx/ | head -c 8388608"
	u.job = r.detach(t, "sh", "-c", output+" > big; cat big; exec sleep 3600")
	u.terminal = r.detach(t, "-t", "sh", "-c", output+"; exec sleep 3600")
	u.key = "unread"
	root := r.daemon.dial(t)
	for _, id := range []string{u.job, u.terminal} {
		u.written(t, id, 8<<20)
	}
	for range 200 {
		if _, err := root.Run(t.Context(), joblet.Spec{Command: "true", Schedule: "+1h", Env: map[string]string{"A": strings.Repeat("x", 20_000)}}); err != nil {
			t.Fatal(err)
		}
	}
	u.base = u.settled(t)
	return u
}

// written waits until a job has written so much.
func (u *unread) written(t *testing.T, id string, size int64) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		st, err := os.Stat(filepath.Join(u.state, "jobs", id, "log"))
		if err == nil && st.Size() >= size {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("job %s has not written %d bytes: %v", id, size, err)
		}
	}
}

// request returns the first message of a call and how many of such calls are made. A
// method that is new needs an entry.
func (u *unread) request(t *testing.T, method string) (proto.Message, int) {
	t.Helper()
	run := &api.RunJobRequest{Command: "sh", Args: []string{"-c", "head -c 8388608 /dev/zero; exec sleep 3600"}, IdempotencyKey: u.key}
	file := func(n int) (proto.Message, int) {
		return &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_FileByFilename{FileByFilename: api.File_joblet_proto.Path()}}, n
	}
	switch method {
	case api.JobService_GetJobLogs_FullMethodName:
		return &api.GetJobLogsRequest{Uuid: u.job}, unreadAll
	case api.JobService_FollowJob_FullMethodName:
		return &api.FollowJobRequest{Uuid: u.job}, unreadAll
	case api.JobService_StreamJobMetrics_FullMethodName:
		return &api.StreamJobMetricsRequest{JobUuid: u.job, IntervalMs: 100}, unreadShort
	case api.JobService_GetJobMetrics_FullMethodName:
		return &api.GetJobMetricsRequest{JobUuid: u.job}, unreadShort
	case api.JobService_StreamJobTelematics_FullMethodName, api.JobService_GetJobTelematics_FullMethodName:
		return &api.GetJobTelematicsRequest{}, unreadShort
	case api.JobService_RunJobAttached_FullMethodName:
		return run, unreadAll
	case api.JobService_SubmitJob_FullMethodName:
		return &api.JobInput{Input: &api.JobInput_Run{Run: run}}, unreadAll
	case api.JobService_AttachJob_FullMethodName:
		return &api.JobInput{Input: &api.JobInput_Attach{Attach: &api.AttachJobRequest{Uuid: u.terminal, Tail: 8 << 20}}}, unreadAll
	case api.JobService_ExecJob_FullMethodName:
		return &api.ExecInput{Input: &api.ExecInput_Run{Run: &api.ExecJobRequest{Uuid: u.job, Command: "cat", Args: []string{"big"}}}}, unreadFew
	case api.JobService_GetJobFiles_FullMethodName:
		return &api.GetJobFilesRequest{Uuid: u.job}, unreadAll
	case api.JobService_QueryJobs_FullMethodName:
		return &api.QueryJobsRequest{}, unreadAll
	case api.MonitoringService_StreamSystemMetrics_FullMethodName:
		return &api.StreamMetricsRequest{IntervalSeconds: 10}, unreadShort
	case api.RuntimeService_BuildRuntime_FullMethodName:
		return &api.BuildRuntimeRequest{YamlContent: "x", DryRun: true}, unreadShort
	case grpc_health_v1.Health_Watch_FullMethodName:
		return &grpc_health_v1.HealthCheckRequest{}, unreadShort
	case reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:
		return file(unreadAll)
	case reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName:
		return file(unreadShort)
	}
	t.Fatalf("%s: what shall be asked?", method)
	return nil, 0
}

// dialEve connects as one who does not read: as root through the socket, or with a
// certificate.
func (u *unread) dialEve(t *testing.T, socket bool) net.Conn {
	t.Helper()
	if socket {
		conn, err := net.Dial("unix", strings.TrimPrefix(u.daemon.host(), "unix://"))
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn, err := tls.Dial("tcp", u.address, u.tls(t, "eve"))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func (u *unread) tls(t *testing.T, name string) *tls.Config {
	t.Helper()
	conf, err := client.LoadConfig(u.bundle(name))
	if err != nil {
		t.Fatal(err)
	}
	n, err := conf.Node("")
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.TLS()
	if err != nil {
		t.Fatal(err)
	}
	c.ServerName, c.NextProtos = "joblet", []string{"h2"}
	return c
}

// watch makes other calls until stop is closed, and tells how long the longest took.
func (u *unread) watch(t *testing.T, c *client.Client, stop <-chan struct{}) (longest time.Duration) {
	for tick := time.NewTicker(callEvery); ; {
		select {
		case <-stop:
			tick.Stop()
			return longest
		case <-tick.C:
		}
		begun := time.Now()
		if _, err := c.Job(t.Context(), u.job); err != nil {
			t.Errorf("another client: %v", err)
			return longest
		}
		n := 0
		for _, err := range c.Jobs(t.Context(), joblet.Filter{Limit: 20}) {
			if err != nil {
				t.Errorf("another client's list: %v", err)
				return longest
			}
			n++
		}
		for event, err := range c.Follow(t.Context(), u.job, joblet.LogOptions{}) {
			if err != nil {
				t.Errorf("another client's log: %v", err)
			}
			if out, ok := event.(client.Output); ok {
				n += len(out.Data)
			}
			if n > 256<<10 {
				break
			}
		}
		longest = max(longest, time.Since(begun))
	}
}

// growth runs open, which opens streams, and returns by how much the daemon has grown
// at most when they have been there for a while, and checks that it is given back after
// they are closed.
func (u *unread) growth(t *testing.T, most int, open func() (shut func())) {
	t.Helper()
	before := u.status(t, "VmRSS:")
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", u.cmd.Process.Pid), []byte("5"), 0); err != nil { // VmHWM begins anew
		t.Fatal(err)
	}
	stop, watched := make(chan struct{}), make(chan time.Duration)
	bob := u.remoteDaemon.dial(t, "bob")
	go func() { watched <- u.watch(t, bob, stop) }()
	shut := open()
	rss := u.settled(t)
	close(stop)
	if longest := <-watched; longest > servedWithin {
		t.Errorf("another client waited for %v", longest)
	}
	peak := u.status(t, "VmHWM:")
	t.Logf("from %d MiB to %d, %d at most", before>>20, rss>>20, peak>>20)
	if peak-u.base > most {
		t.Errorf("the daemon has grown by %d MiB, %d are allowed", (peak-u.base)>>20, most>>20)
	}
	shut()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		after := u.status(t, "VmRSS:")
		if after-u.base < 24<<20 {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("the daemon has %d MiB when they are gone, %d at first", after>>20, u.base>>20)
			return
		}
	}
}

func (u *unread) status(t *testing.T, key string) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", u.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatalf("no %s", key)
	return 0
}

// settled waits until the daemon does not grow any more, and returns its size.
func (u *unread) settled(t *testing.T) int {
	t.Helper()
	last, same := 0, 0
	for range 100 {
		now := u.status(t, "VmRSS:")
		if now > last+2<<20 || now < last-2<<20 {
			last, same = now, 0
		} else if same++; same == 15 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return u.status(t, "VmRSS:")
}

// overSocket are methods that are called through the local socket as well, where
// connections differ and calls do not: the largest messages, files, and a list.
var overSocket = []string{
	api.JobService_FollowJob_FullMethodName, api.JobService_GetJobFiles_FullMethodName, api.JobService_QueryJobs_FullMethodName,
}

// TestUnreadStreams: 1,000 streams of each method that has any, or fewer where answers are
// short, take little of the daemon's memory when nobody reads them, and keep nobody else
// from being served.
func TestUnreadStreams(t *testing.T) {
	t.Parallel()
	var methods []string
	for _, file := range []protoreflect.FileDescriptor{
		api.File_joblet_proto, grpc_health_v1.File_grpc_health_v1_health_proto,
		reflectionv1.File_grpc_reflection_v1_reflection_proto, reflectionv1alpha.File_grpc_reflection_v1alpha_reflection_proto,
	} {
		for i := range file.Services().Len() {
			s := file.Services().Get(i)
			for j := range s.Methods().Len() {
				if m := s.Methods().Get(j); m.IsStreamingServer() {
					methods = append(methods, fmt.Sprintf("/%s/%s", s.FullName(), m.Name()))
				}
			}
		}
	}
	var cases []unreadCase
	for _, socket := range []bool{false, true} {
		for _, method := range methods {
			if socket && !slices.Contains(overSocket, method) {
				continue
			}
			cases = append(cases, unreadCase{fmt.Sprintf("socket=%v%s", socket, method), func(t *testing.T, u *unread) {
				request, n := u.request(t, method)
				most := maxGrowth
				if n < unreadAll {
					most = max(maxGrowth*n/unreadAll, 40<<20)
				}
				u.growth(t, most, func() func() {
					ctx, cancel := context.WithCancel(t.Context())
					var creds credentials.TransportCredentials = insecure.NewCredentials()
					if !socket {
						creds = credentials.NewTLS(u.tls(t, "eve"))
					}
					target := map[bool]string{true: u.daemon.host(), false: "passthrough:///" + u.address}[socket]
					conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
					if err != nil {
						t.Fatal(err)
					}
					var began sync.WaitGroup
					for range n {
						s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
						if err == nil {
							err = s.SendMsg(request)
						}
						if err != nil && err != io.EOF {
							t.Fatal(err)
						}
						if !strings.HasSuffix(method, "/SubmitJob") { // its input would end
							_ = s.CloseSend()
						}
						began.Go(func() { _, _ = s.Header() })
					}
					began.Wait()
					return func() { cancel(); conn.Close() }
				})
			}})
		}
	}
	runUnread(t, cases)
}

// TestUnreadConnections: nor does one that opens its windows and reads nothing from its
// connection, or that opens them by a byte; with large answers to calls that are no
// streams as well.
func TestUnreadConnections(t *testing.T) {
	t.Parallel()
	var cases []unreadCase
	for _, socket := range []bool{false, true} {
		for _, method := range []string{
			api.JobService_FollowJob_FullMethodName, api.JobService_QueryJobs_FullMethodName, api.JobService_ListJobs_FullMethodName,
			api.MonitoringService_GetSystemStatus_FullMethodName,
		} {
			for _, window := range []uint32{1, 1<<31 - 1} {
				cases = append(cases, unreadCase{fmt.Sprintf("socket=%v%s/%d", socket, method, window), func(t *testing.T, u *unread) {
					u.growth(t, maxGrowth, func() func() {
						var conns []net.Conn
						for range 4 {
							conn := u.dialEve(t, socket)
							conns = append(conns, conn)
							flood(t, conn, method, &api.FollowJobRequest{Uuid: u.job}, unreadAll/4, window)
						}
						return func() {
							for _, c := range conns {
								c.Close()
							}
						}
					})
				}})
			}
		}
	}
	runUnread(t, cases)
}

// flood makes calls on a connection and reads nothing.
func flood(t *testing.T, conn net.Conn, method string, request proto.Message, calls int, window uint32) {
	t.Helper()
	var headers, out bytes.Buffer
	framer, encoder := http2.NewFramer(&out, nil), hpack.NewEncoder(&headers)
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	out.WriteString(http2.ClientPreface)
	must(framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}))
	must(framer.WriteWindowUpdate(0, 1<<31-1-65535))
	if !strings.HasSuffix(method, "/FollowJob") {
		request = &api.EmptyRequest{}
	}
	body, err := proto.Marshal(request)
	must(err)
	body = append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(body))), body...)
	for i := range calls {
		headers.Reset()
		for _, h := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":path", method}, {":authority", "joblet"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
			must(encoder.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}))
		}
		must(framer.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: headers.Bytes(), EndHeaders: true}))
		must(framer.WriteData(uint32(2*i+1), true, body))
	}
	must(conn.SetWriteDeadline(time.Now().Add(5 * time.Second)))
	if _, err := out.WriteTo(conn); err != nil && !os.IsTimeout(err) { // it may be that no more is taken in
		t.Fatal(err)
	}
}
