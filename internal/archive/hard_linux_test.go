package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/joblet/joblet"
)

// sameFiles returns the names in a directory that lead to one file, as "a=b".
func sameFiles(t testing.TB, dir string) string {
	t.Helper()
	first := map[uint64]string{}
	var same []string
	for _, name := range []string{"a", "b", "d/c", "holes", "holes too", "x"} {
		fi, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		ino := fi.Sys().(*syscall.Stat_t).Ino
		if other, ok := first[ino]; ok {
			same = append(same, other+"="+name)
		} else {
			first[ino] = name
		}
	}
	return strings.Join(same, " ")
}

// TestHardLinks: names of one file stay that on each way, and it counts once.
func TestHardLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, 0o640, "content", dir, "a")
	write(t, 0o640, "x", dir, "x")
	sparse(t, filepath.Join(dir, "holes"), 1<<20, map[int64]string{1 << 19: "middle"})
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o750), os.Link(dir+"/a", dir+"/b"), os.Link(dir+"/a", dir+"/d/c"), os.Link(dir+"/holes", dir+"/holes too")); err != nil {
		t.Fatal(err)
	}
	want := list(t, dir)
	const same = "a=b a=d/c holes=holes too"
	lim := Limits{Bytes: 7 + 1 + 4096, Entries: 7} // each once
	for name, pack := range map[string]func(io.Writer) (Stats, error){
		"PackTree": func(w io.Writer) (Stats, error) { return PackTree(w, openRoot(t, dir), nil, lim) },
		"PackPaths": func(w io.Writer) (Stats, error) {
			if _, err := CheckPaths([]Source{{Path: dir}}, Filter{}, lim); err != nil {
				return Stats{}, err
			}
			return PackPaths(w, []Source{{Path: dir}}, Filter{}, lim)
		},
		"PackPaths, one by one": func(w io.Writer) (Stats, error) {
			var all []Source
			for _, name := range []string{"x", "a", "b", "d", "holes", "holes too"} {
				all = append(all, Source{Path: filepath.Join(dir, name), Name: name})
			}
			return PackPaths(w, all, Filter{}, lim)
		},
	} {
		var packed, checked, selected bytes.Buffer
		stats, err := pack(&packed)
		if err != nil || stats.Bytes != lim.Bytes || stats.Entries != lim.Entries || stats.Skipped != 0 {
			t.Fatalf("%s: %+v %v", name, stats, err)
		}
		if again, err := Check(&checked, &packed, lim); err != nil || fmt.Sprint(again) != fmt.Sprint(stats) {
			t.Fatalf("%s: Check: %+v %v", name, again, err)
		}
		if again, err := Select(&selected, bytes.NewReader(checked.Bytes()), nil); err != nil || fmt.Sprint(again) != fmt.Sprint(stats) {
			t.Fatalf("%s: Select: %+v %v", name, again, err)
		}
		for _, unpack := range []func(*os.Root, io.Reader, Limits) (Stats, error){Unpack, UnpackForJob} {
			out := t.TempDir()
			write(t, 0o600, "old", out, "b") // it is replaced
			for range 2 {
				if again, err := unpack(openRoot(t, out), bytes.NewReader(selected.Bytes()), lim); err != nil || fmt.Sprint(again) != fmt.Sprint(stats) {
					t.Fatalf("%s: Unpack: %+v %v", name, again, err)
				}
				diff(t, list(t, out), want)
				if got := sameFiles(t, out); got != same {
					t.Errorf("%s: the same are %q", name, got)
				}
				if size, blocks := onDisk(t, out+"/holes"); size != 1<<20 || blocks > 1<<16 {
					t.Errorf("%s: a file with holes takes %d of %d bytes", name, blocks, size)
				}
			}
		}
	}
	// Of some names alone, the first has the content.
	var all bytes.Buffer
	if _, err := PackTree(&all, openRoot(t, dir), nil, generous); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		patterns []string
		files    []string
		same     string
	}{
		{[]string{"b"}, []string{"b"}, ""},
		{[]string{"b", "d", "holes too"}, []string{"b", "d", "d/c", "holes too"}, "b=d/c"},
		{[]string{"a", "d"}, []string{"a", "d", "d/c"}, "a=d/c"},
	} {
		for name, pick := range map[string]func(io.Writer, func(string) bool) (Stats, error){
			"Select": func(w io.Writer, m func(string) bool) (Stats, error) {
				return Select(w, bytes.NewReader(all.Bytes()), m)
			},
			"PackTree": func(w io.Writer, m func(string) bool) (Stats, error) {
				return PackTree(w, openRoot(t, dir), m, generous)
			},
		} {
			m, err := NewMatcher(tt.patterns)
			if err != nil {
				t.Fatal(err)
			}
			var some bytes.Buffer
			stats, err := pick(&some, m.Match)
			if err != nil {
				t.Fatal(err)
			}
			out := t.TempDir()
			if again, err := Unpack(openRoot(t, out), &some, generous); err != nil || fmt.Sprint(again) != fmt.Sprint(stats) {
				t.Fatalf("%s: %v: %+v %v", name, tt.patterns, again, err)
			}
			wanted := maps.Clone(want)
			maps.DeleteFunc(wanted, func(file, _ string) bool {
				for _, f := range tt.files {
					if f == file {
						return false
					}
				}
				return true
			})
			diff(t, list(t, out), wanted)
			if got := sameFiles(t, out); got != tt.same {
				t.Errorf("%s: %v: the same are %q", name, tt.patterns, got)
			}
		}
	}
}

// TestHardLinkTaken: an attacker who removes the file before it gets its second name
// learns nothing of the file behind it.
func TestHardLinkTaken(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	write(t, 0o600, secret, parent, "secret")
	dir := filepath.Join(parent, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	in, out := io.Pipe()
	go func() {
		w := tar.NewWriter(out)
		f, h := fileOf("f", ""), hardOf("g", "f")
		_ = w.WriteHeader(&f)
		_ = w.Flush()
		end := fileOf("end", "")
		_ = w.WriteHeader(&end) // f is there when this has been read
		_ = w.Flush()
		_ = errors.Join(os.Remove(dir+"/f"), os.Symlink("../secret", dir+"/f"))
		_ = w.WriteHeader(&h)
		out.CloseWithError(w.Close())
	}()
	_, err := Unpack(openRoot(t, dir), in, generous)
	if data, _ := os.ReadFile(dir + "/g"); err == nil || string(data) == secret {
		t.Errorf("got %q, %v", data, err)
	}
	if found, err := os.ReadDir(parent); err != nil || len(found) != 2 {
		t.Errorf("outside: %v %v", found, err)
	}
	if _, err := Unpack(openRoot(t, dir), bytes.NewReader(tarOf(t, fileOf("f", "1"), hardOf("g", "f"))), generous); err != nil || joblet.KindOf(err) != joblet.Internal {
		t.Errorf("the next time: %v", err)
	}
}
