package protocol

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

var record = flag.Bool("record", false, "write the messages of this version")

// golden are the messages, by the file in testdata/VERSION that holds one with every
// field. A daemon and the shim of a job that it adopts exchange those that adopted says.
var golden = []struct {
	file    string
	adopted bool
	message any
}{
	{"sandbox.json", false, new(Sandbox)},
	{"run.json", false, new(Run)},
	{"exec.json", false, new(Exec)},
	{"request.json", true, new(Request)}, // of a running job
	{"event.json", true, new(Event)},
	{"record.json", true, new(Record)},
}

// TestGolden: the messages of this version are those in testdata, and those of earlier
// versions mean what they meant. A change that a shim or a daemon could notice needs a
// new Version, and files for it (go test -record).
func TestGolden(t *testing.T) {
	for version := 1; version <= Version; version++ {
		for _, g := range golden {
			name := filepath.Join("testdata", strconv.Itoa(version), g.file)
			want := filled(g.message)
			if version == Version && *record {
				if err := os.WriteFile(name, encode(t, want), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if version < Version && !g.adopted {
				continue
			}
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := reflect.New(reflect.TypeOf(g.message).Elem()).Interface()
			if err := json.Unmarshal(data, got); err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if version == Version && !reflect.DeepEqual(got, want) {
				t.Errorf("%s: it is read as %s", name, encode(t, got))
			}
			if again := encode(t, got); version == Version && !bytes.Equal(again, data) {
				t.Errorf("%s: it is written as %s", name, again)
			}
			var old, now any
			if err := json.Unmarshal(data, &old); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(encode(t, got), &now); err != nil {
				t.Fatal(err)
			}
			for _, path := range lost("", old, now) {
				if readElsewhere(path) {
					continue
				}
				t.Errorf("%s: %s is lost, or means something else", name, path)
			}
		}
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(data, '\n')
}

// readElsewhere reports whether path is sent by an earlier version and read from
// elsewhere: the exit record, which came with the end of a job, from its file.
func readElsewhere(path string) bool {
	return strings.HasPrefix(path, ".ended.") && path != ".ended.code" && path != ".ended.signal"
}

// lost returns the paths in old whose values are not the same in now.
func lost(path string, old, now any) (paths []string) {
	switch old := old.(type) {
	case map[string]any:
		m, _ := now.(map[string]any)
		for key, value := range old {
			paths = append(paths, lost(path+"."+key, value, m[key])...)
		}
	case []any:
		list, _ := now.([]any)
		for i, value := range old {
			var other any
			if i < len(list) {
				other = list[i]
			}
			paths = append(paths, lost(fmt.Sprintf("%s[%d]", path, i), value, other)...)
		}
	default:
		if !reflect.DeepEqual(old, now) {
			paths = append(paths, path)
		}
	}
	return paths
}

// filled returns a message of the same type with a value in every field. A Request is
// one to a running job: it starts nothing.
func filled(message any) any {
	out := reflect.New(reflect.TypeOf(message).Elem())
	fill(out.Elem(), "")
	if r, ok := out.Interface().(*Request); ok {
		r.Sandbox, r.Run, r.Exec = nil, nil, nil
	}
	return out.Interface()
}

// fill sets a value, and all in it, to something that depends on its name.
func fill(v reflect.Value, name string) {
	sum := uint64(7)
	for _, c := range []byte(name) {
		sum = sum*31 + uint64(c)
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(sum % math.MaxInt8))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr:
		v.SetUint(sum % math.MaxInt8)
	case reflect.String:
		v.SetString(name)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), name)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), name)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), name+strconv.Itoa(i))
		}
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, name)
		fill(value, name)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), v.Type().Field(i).Name)
		}
	default:
		panic(name + " is a " + v.Kind().String())
	}
}
