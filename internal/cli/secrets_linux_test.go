package cli

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"google.golang.org/grpc"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/wire"
)

// TestMain makes the test program rnx itself when a test asks for one.
func TestMain(m *testing.M) {
	if os.Getenv("RNX_TEST_MAIN") != "" {
		HideSecrets()
		os.Exit(Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// TestSecretsHidden: by the time rnx talks to a daemon, nobody can read a secret
// from its command line.
func TestSecretsHidden(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	rnx := exec.Command(os.Args[0], "--host=unix://"+socket, "job", "run", "--secret-env=A=hunter2", "--secret-env", "B=hunter2", "-sC=hunter2", "-ds", "D=hunter2", "-e", "E=open", "true", "x=y")
	rnx.Env = append(os.Environ(), "RNX_TEST_MAIN=1")
	if err := rnx.Start(); err != nil {
		t.Fatal(err)
	}
	defer rnx.Wait() // it is killed
	defer rnx.Process.Kill()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	shown, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", rnx.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(shown, []byte("hunter2")) {
		t.Errorf("a secret is shown: %q", shown)
	}
	for _, want := range []string{"--secret-env=A=*******\x00--secret-env\x00B=*******\x00-sC=*******\x00-ds\x00D=*******\x00-e\x00E=open\x00true\x00x=y\x00"} {
		if !bytes.Contains(shown, []byte(want)) {
			t.Errorf("no %q in %q", want, shown)
		}
	}
}

// TestSecretsArrive: what is hidden is still what the job gets.
func TestSecretsArrive(t *testing.T) {
	t.Parallel()
	jobs := &acceptJobs{asked: make(chan *api.RunJobRequest, 1)}
	rnx := exec.Command(os.Args[0], "--host="+jobs.serve(t), "job", "run", "-d", "-sA=hunter2", "--secret-env", "B=x=y", "true")
	rnx.Env = append(os.Environ(), "RNX_TEST_MAIN=1")
	if out, err := rnx.CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	want := map[string]string{"A": "hunter2", "B": "x=y"}
	if got := (<-jobs.asked).GetSecretEnvironment(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v", got)
	}
}

// acceptJobs is a daemon that accepts jobs and tells of them.
type acceptJobs struct {
	api.UnimplementedJobServiceServer
	asked chan *api.RunJobRequest
}

func (a *acceptJobs) RunJob(_ context.Context, r *api.RunJobRequest) (*api.RunJobResponse, error) {
	a.asked <- r
	return &api.RunJobResponse{Job: wire.JobToProto(joblet.Job{ID: "aaaaaaaa-0000-4000-8000-000000000000", State: joblet.Scheduled})}, nil
}

// serve answers calls until the test ends, and returns where.
func (a *acceptJobs) serve(t *testing.T) (host string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	api.RegisterJobServiceServer(s, a)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		<-served
	})
	return "unix://" + socket
}

func TestSecretValues(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		want []string // what is hidden
	}{
		{[]string{"job", "run", "--secret-env=A=b=c", "x"}, []string{"b=c"}},
		{[]string{"--secret-env", "A=b", "--secret-env", "A", "C=d"}, []string{"b"}},
		{[]string{"-sA=b", "-s=A=c", "-s", "A=d", "-dsA=e", "-ds", "A=f"}, []string{"b", "c", "d", "e", "f"}},
		{[]string{"-eA=s=t", "-lstage=x", "-wx/s=y", "--env=s=t", "--secret-env-file=a=b", "--secret-envx=a=b"}, nil},
		{[]string{"--", "-sA=b"}, nil},
		{[]string{"-s", "TERM"}, nil},
		{[]string{"-s", "", "-", "-s"}, nil},
		{[]string{"--secret-env=A="}, []string{""}},
	} {
		var got []string
		secretValues(tt.args, func(i, from int) { got = append(got, tt.args[i][from:]) })
		if !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.args, got, tt.want)
		}
	}
}
