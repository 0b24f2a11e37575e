package api_test

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/testenv"
)

// words returns a line for each service's method, message, field and retired number
// of the API, and whether it is a field that public messages may have beside theirs.
func words() (have, extensions map[string]bool) {
	have, extensions = map[string]bool{}, map[string]bool{}
	services := api.File_joblet_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for k := range methods.Len() {
			m := methods.Get(k)
			stream := map[bool]string{true: "stream "}
			have[fmt.Sprintf("%s.%s(%s%s) %s%s", services.Get(i).Name(), m.Name(),
				stream[m.IsStreamingClient()], m.Input().Name(), stream[m.IsStreamingServer()], m.Output().Name())] = true
		}
	}
	messages := api.File_joblet_proto.Messages()
	for i := range messages.Len() {
		m := messages.Get(i)
		have[string(m.Name())] = true
		fields := m.Fields()
		for k := range fields.Len() {
			f := fields.Get(k)
			line := fmt.Sprintf("%s %s=%d:%s", m.Name(), f.Name(), f.Number(), typeName(f))
			switch o := f.ContainingOneof(); {
			case o == nil:
			case o.IsSynthetic():
				line += "?" // it can be absent
			default:
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
	return have, extensions
}

// readWords returns the lines of a file that are no comments.
func readWords(t *testing.T, path string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			all[line] = true
		}
	}
	return all
}

const publicAPI, ownAPI = "testdata/public-api.txt", "testdata/own-api.txt"

// TestContract checks that everything existing clients use is there under its
// name, number and type, and that what is beside it keeps out of its numbers.
func TestContract(t *testing.T) {
	t.Parallel()
	file := api.File_joblet_proto
	if file.Package() != "joblet" || file.Syntax() != protoreflect.Proto3 {
		t.Errorf("package %s, syntax %v", file.Package(), file.Syntax())
	}
	have, extensions := words()
	contract, known := readWords(t, publicAPI), map[string]bool{}
	if len(contract) < 480 {
		t.Fatalf("the contract has only %d lines", len(contract))
	}
	for line := range contract {
		known[strings.Fields(line)[0]] = true
		if !have[line] {
			t.Errorf("missing: %s", line)
		}
	}
	for line, extension := range extensions {
		if known[strings.Fields(line)[0]] && !contract[line] && !extension {
			t.Errorf("takes a number below 100 in a public message: %s", line)
		}
	}
}

var record = flag.Bool("record", false, "write what the API has beside the public one into "+ownAPI)

// TestOwnContract checks that what we have added to the API stays as it is too: it
// may grow, and each addition is recorded from then on (go test ./api -record).
func TestOwnContract(t *testing.T) {
	t.Parallel()
	have, _ := words()
	for line := range readWords(t, publicAPI) {
		delete(have, line)
	}
	if n := nested(); n != 0 {
		t.Errorf("%d enums or messages in messages, of which this test knows nothing", n)
	}
	recorded := readWords(t, ownAPI)
	for line := range recorded {
		if !have[line] {
			t.Errorf("changed or removed, which breaks clients: %s", line)
		}
	}
	if *record && !t.Failed() {
		text := "# What the API has beside the public one. It may grow, and must not change; see TestOwnContract.\n" +
			strings.Join(slices.Sorted(maps.Keys(have)), "\n") + "\n"
		if err := os.WriteFile(ownAPI, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for line := range have {
		if !recorded[line] {
			t.Errorf("not recorded yet (go test ./api -record): %s", line)
		}
	}
}

// nested returns how many enums there are, and messages in messages that are no
// entries of maps.
func nested() (n int) {
	n = api.File_joblet_proto.Enums().Len()
	for i := range api.File_joblet_proto.Messages().Len() {
		m := api.File_joblet_proto.Messages().Get(i)
		n += m.Enums().Len()
		for k := range m.Messages().Len() {
			if !m.Messages().Get(k).IsMapEntry() {
				n++
			}
		}
	}
	return n
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
	testenv.RequireProgram(t, "protoc", "protobuf-compiler")
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
