package api_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet/api"
)

// TestContract checks that everything existing clients use is there under its
// name, number and type, and that what is beside it keeps out of its numbers.
func TestContract(t *testing.T) {
	t.Parallel()
	file := api.File_joblet_proto
	if file.Package() != "joblet" || file.Syntax() != protoreflect.Proto3 {
		t.Errorf("package %s, syntax %v", file.Package(), file.Syntax())
	}
	have := map[string]bool{}
	services := file.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for k := range methods.Len() {
			m := methods.Get(k)
			stream := ""
			if m.IsStreamingServer() {
				stream = "stream "
			}
			have[fmt.Sprintf("%s.%s(%s) %s%s", services.Get(i).Name(), m.Name(), m.Input().Name(), stream, m.Output().Name())] = true
			if m.IsStreamingClient() && m.Name() != "SubmitJob" && m.Name() != "AttachJob" && m.Name() != "ExecJob" {
				t.Errorf("%s streams from the client", m.FullName())
			}
		}
	}
	extensions := map[string]bool{} // lines that the contract need not hold
	messages := file.Messages()
	for i := range messages.Len() {
		m := messages.Get(i)
		have[string(m.Name())] = true
		fields := m.Fields()
		for k := range fields.Len() {
			f := fields.Get(k)
			line := fmt.Sprintf("%s %s=%d:%s", m.Name(), f.Name(), f.Number(), typeName(f))
			if o := f.ContainingOneof(); o != nil && !o.IsSynthetic() {
				line += "|" + string(o.Name())
			}
			have[line] = true
			extensions[line] = f.Number() >= 100
		}
		for k := range m.ReservedRanges().Len() {
			r := m.ReservedRanges().Get(k)
			for n := r[0]; n < r[1]; n++ {
				have[fmt.Sprintf("%s reserved %d", m.Name(), n)] = true
			}
		}
	}

	table, err := os.Open("testdata/public-api.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	contract, known := map[string]bool{}, map[string]bool{}
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		contract[line] = true
		known[strings.Fields(line)[0]] = true
		if !have[line] {
			t.Errorf("missing: %s", line)
		}
	}
	if len(contract) < 480 {
		t.Fatalf("the contract has only %d lines", len(contract))
	}
	for line, extension := range extensions {
		if known[strings.Fields(line)[0]] && !contract[line] && !extension {
			t.Errorf("takes a number below 100 in a public message: %s", line)
		}
	}
}

func typeName(f protoreflect.FieldDescriptor) string {
	switch {
	case f.IsMap():
		return fmt.Sprintf("map<%s,%s>", f.MapKey().Kind(), f.MapValue().Kind())
	case f.Message() != nil && f.IsList():
		return "*" + string(f.Message().Name())
	case f.Message() != nil:
		return string(f.Message().Name())
	case f.IsList():
		return "*" + f.Kind().String()
	}
	return f.Kind().String()
}

// TestGenerated checks that the committed code is what protoc makes of
// joblet.proto.
func TestGenerated(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Skip("requires protoc")
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "./generate.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("generate: %v\n%s", err, out)
	}
	for _, name := range []string{"joblet.pb.go", "joblet_grpc.pb.go"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(withoutVersions(got), withoutVersions(want)) {
			t.Errorf("%s is not current: run go generate ./api", name)
		}
	}
}

// withoutVersions drops the generated header, which names the local protoc.
func withoutVersions(b []byte) []byte {
	_, rest, _ := bytes.Cut(b, []byte("// source:"))
	return rest
}
