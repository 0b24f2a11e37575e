package client_test

import (
	"archive/tar"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/client"
)

// Run a command and show what it writes.
func Example() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for event, err := range c.RunAttached(ctx, joblet.Spec{Command: "ps", Args: []string{"aux"}}) {
		if err != nil {
			log.Fatal(err)
		}
		switch e := event.(type) {
		case client.Output:
			os.Stdout.Write(e.Data)
		case client.Ended:
			fmt.Println(e.Job.State)
		}
	}
}

// What the daemon did not do has a kind, by which a program can tell what to do now.
func Example_errors() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if joblet.KindOf(err) == joblet.Unavailable {
		log.Fatal("no daemon answers: ", err)
	} else if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	switch job, err := c.Job(ctx, "web"); joblet.KindOf(err) {
	case joblet.NotFound:
		fmt.Println("there is none")
	case joblet.PermissionDenied:
		fmt.Println("it is somebody else's")
	default:
		fmt.Println(job.State, err)
	}
}

// A daemon on another machine, as rnx would choose it.
func ExampleLoadConfig() {
	ctx := context.Background()
	conf, err := client.LoadConfig("") // $RNX_CONFIG, ./rnx-config.yml, ~/.rnx/rnx-config.yml, …
	if err != nil {
		log.Fatal(err)
	}
	node, err := conf.Node("lab")
	if err != nil {
		log.Fatal(err)
	}
	c, err := node.Dial(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	v, err := c.ServerVersion(ctx)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(v.Version, v.Caller, v.Role)
}

func ExampleParseConfig() {
	conf, err := client.ParseConfig([]byte(`
nodes:
  default:
    address: node1.example.org
  lab:
    address: 192.0.2.7:50061
`))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(conf.Names())
	node, err := conf.Node("lab")
	fmt.Println(node.Address, err)
	node, err = conf.Node("")
	fmt.Println(node.Address, err)
	_, err = conf.Node("nope")
	fmt.Println(joblet.KindOf(err))
	// Output:
	// [default lab]
	// 192.0.2.7:50061 <nil>
	// node1.example.org <nil>
	// not found
}

// What rnx login does with a bundle.
func ExampleAddNodes() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, client.ConfigName)
	lab := map[string]client.Node{"lab": {Address: "192.0.2.7:50051"}}
	if err := client.AddNodes(path, lab, false); err != nil {
		log.Fatal(err)
	}
	fmt.Println(joblet.KindOf(client.AddNodes(path, lab, false)))
	conf, err := client.LoadConfig(path)
	if err != nil {
		log.Fatal(err)
	}
	node, err := conf.Node("") // the only one
	fmt.Println(node.Address, err)
	// Output:
	// already exists
	// 192.0.2.7:50051 <nil>
}

// With certificates from somewhere else than a configuration of rnx.
func ExampleDialTLS() {
	pair, err := tls.LoadX509KeyPair("alice.crt", "alice.key")
	if err != nil {
		log.Fatal(err)
	}
	ca, err := os.ReadFile("ca.crt")
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	c, err := client.DialTLS(context.Background(), "node1.example.org:50051", &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
}

func ExampleClient_Run() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	spec := joblet.Spec{
		Command: "python3", Args: []string{"train.py"}, Runtime: "python-3.11-ml", Name: "train",
		Limits: joblet.Limits{MemoryBytes: 2 << 30, CPUPercent: 150}, Timeout: time.Hour, Retries: 3,
		Env: map[string]string{"EPOCHS": "10"}, SecretEnv: map[string]string{"TOKEN": os.Getenv("TOKEN")},
	}
	job, err := c.Run(ctx, spec) // it is accepted
	if err != nil {
		log.Fatal(err)
	}
	if job, err = c.Wait(ctx, job.ID); err != nil { // it has ended
		log.Fatal(err)
	}
	status, _ := job.Status()
	fmt.Println(job.State, status, job.Ended.Sub(job.Started))
}

// A log that breaks off is taken up where it was.
func ExampleClient_Follow() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	opt := joblet.LogOptions{Follow: true}
	for try := 0; try < 10; try++ {
		for event, err := range c.Follow(ctx, "web", opt) {
			switch e := event.(type) {
			case client.Output:
				os.Stdout.Write(e.Data)
				opt.Offset = e.Offset + int64(len(e.Data))
			case client.Gap:
				opt.Offset = e.Offset + e.Length
			case client.Ended:
				return
			}
			if err != nil && joblet.KindOf(err) != joblet.Unavailable {
				log.Fatal(err)
			}
		}
		time.Sleep(time.Second)
	}
}

// Files for the job's /work and its standard input go along with it.
func ExampleClient_Submit() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	in := client.Input{
		Files: func(w io.Writer) error {
			archive := tar.NewWriter(w)
			text := "#!/bin/sh\nwc -l\n"
			err := archive.WriteHeader(&tar.Header{Name: "count.sh", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(text))})
			if err == nil {
				_, err = io.WriteString(archive, text)
			}
			return errors.Join(err, archive.Close())
		},
		Stdin: strings.NewReader("one\ntwo\n"),
	}
	for event, err := range c.Submit(ctx, joblet.Spec{Command: "./count.sh", Stdin: joblet.StdinStream}, in, false) {
		if err != nil {
			log.Fatal(err)
		}
		if e, ok := event.(client.Output); ok {
			os.Stdout.Write(e.Data)
		}
	}
}

func ExampleClient_Jobs() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	f := joblet.Filter{States: []joblet.State{joblet.Running}, Owner: "cert:alice", Since: time.Now().Add(-time.Hour)}
	for job, err := range c.Jobs(ctx, f) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(joblet.ShortID(job.ID), job.Spec.CommandLine())
	}
}

// A further process in a running job.
func ExampleClient_Exec() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	x, err := c.Exec(ctx, "web", joblet.ExecSpec{Command: "cat", Stdin: true})
	if err != nil {
		log.Fatal(err)
	}
	defer x.Close()
	go func() { // ends with x
		if _, err := io.WriteString(x, "through the job\n"); err == nil {
			err = x.CloseInput()
		}
	}()
	exit, err := x.Wait(func(_ client.Stream, b []byte) error {
		_, err := os.Stdout.Write(b)
		return err
	})
	fmt.Println(exit.Status(), err)
}

// Type into the terminal of a job that has one.
func ExampleClient_Attach() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	s, err := c.Attach(ctx, "shell", joblet.AttachOptions{Size: joblet.WindowSize{Rows: 24, Columns: 80}})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close() // the job goes on
	if err := s.Type([]byte("echo hello; exit\n")); err != nil {
		log.Fatal(err)
	}
	for event, err := range s.Events() {
		if err != nil {
			log.Fatal(err)
		}
		if e, ok := event.(client.Output); ok {
			os.Stdout.Write(e.Data)
		}
	}
}

func ExampleClient_WatchMetrics() {
	ctx := context.Background()
	c, err := client.Dial(ctx, client.DefaultHost)
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	for sample, err := range c.WatchMetrics(ctx, "web", 5*time.Second) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%.0f%% of a processor, %d MiB\n", sample.CPUPercent, sample.Memory>>20)
	}
}
