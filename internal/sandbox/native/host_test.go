package native

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestFreezeProc(t *testing.T) {
	t.Parallel()
	proc := t.TempDir()
	for name, mode := range map[string]os.FileMode{
		"version": 0o444, "open": 0o666, "pressure/cpu": 0o666, "driver/a/b": 0o646, "driver/c": 0o644,
		"sys/x": 0o666, "17/mem": 0o666, "fs/z": 0o666,
	} {
		file := filepath.Join(proc, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("17", filepath.Join(proc, "self")); err != nil {
		t.Fatal(err)
	}
	writable, err := worldWritable(proc)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, file := range writable {
		rel, err := filepath.Rel(proc, file)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, rel)
	}
	if want := []string{"driver/a/b", "fs/z", "open", "pressure/cpu"}; !slices.Equal(names, want) {
		t.Errorf("everybody may write to %q, want %q", names, want)
	}
	if got, want := freezeProc(proc, writable), []string{"sys", "irq", "bus", "fs", "driver", "open", "pressure"}; !slices.Equal(got, want) {
		t.Errorf("read-only are %q, want %q", got, want)
	}
}

func TestFileLimit(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ have, fileMax, want uint64 }{
		{1 << 20, 1<<63 - 1, 1 << 20},
		{1 << 30, 1<<63 - 1, maxFilesDefault},
		{20000, 1<<63 - 1, 20000},
		{512, 1 << 10, 512}, // fewer than programs need, but no more than the daemon has
		{1 << 20, 1 << 10, leastFiles},
		{1 << 20, 1 << 26, 1 << 13},
	} {
		if got := fileLimit(test.have, test.fileMax); got != test.want {
			t.Errorf("fileLimit(%d, %d) = %d, want %d", test.have, test.fileMax, got, test.want)
		}
	}
}

func TestRaiseFileMax(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "file-max")
	for _, test := range []struct{ before, after string }{
		{"2466160\n", "9223372036854775807"},
		{"9223372036854775807\n", "9223372036854775807\n"}, // left as it is
	} {
		if err := os.WriteFile(name, []byte(test.before), 0o600); err != nil {
			t.Fatal(err)
		}
		if ok, err := raiseFileMax(name); !ok || err != nil {
			t.Errorf("%q: %v %v", test.before, ok, err)
		}
		if got, err := os.ReadFile(name); string(got) != test.after {
			t.Errorf("%q became %q, want %q: %v", test.before, got, test.after, err)
		}
	}
	if ok, err := raiseFileMax(filepath.Join(t.TempDir(), "none")); ok || err == nil {
		t.Errorf("without a setting: %v %v", ok, err)
	}
}
