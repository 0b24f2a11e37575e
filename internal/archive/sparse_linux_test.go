package archive

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

// sparse makes a file of a length that holds pieces of text, by offset.
func sparse(t testing.TB, path string, size int64, pieces map[int64]string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for offset, text := range pieces {
		if _, err := f.WriteAt([]byte(text), offset); err != nil {
			t.Fatal(err)
		}
	}
}

// onDisk is what a file takes.
func onDisk(t testing.TB, path string) (size, blocks int64) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Size, st.Blocks * 512
}

func sum(t testing.TB, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

func sumOf(t testing.TB, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return sum(t, f)
}

// TestHoles: holes take nothing in an archive, on each way that it goes, and are
// there again when it is unpacked, by us and by others.
func TestHoles(t *testing.T) {
	t.Parallel()
	const size = 10 << 20
	dir := t.TempDir()
	long := strings.Repeat("long", 40)
	files := map[string]map[int64]string{
		"begin": {0: "begin"}, "end": {size - 3: "end"}, "middle": {1 << 20: "one", 5 << 20: strings.Repeat("x", 100_000), 9 << 20: "three"}, "empty": {}, long: {4096: "long"},
	}
	for name, pieces := range files {
		sparse(t, filepath.Join(dir, name), size, pieces)
	}
	write(t, 0o640, "plain", dir, "plain")
	lim := Limits{Bytes: 1 << 20, Entries: 10}
	packed := &bytes.Buffer{}
	stats, err := PackTree(packed, openRoot(t, dir), nil, lim)
	if err != nil || stats.Beyond > 0 || stats.Bytes > 1<<20 || packed.Len() > 2<<20 {
		t.Fatalf("%+v, %d bytes, %v", stats, packed.Len(), err)
	}
	strict := &bytes.Buffer{}
	if _, err := PackPaths(strict, []Source{{Path: dir}}, Filter{}, lim); err != nil || !bytes.Equal(strict.Bytes(), packed.Bytes()) {
		t.Errorf("PackPaths: %d bytes instead of %d, %v", strict.Len(), packed.Len(), err)
	}
	for _, way := range []struct {
		name string
		do   func(io.Writer, io.Reader) (Stats, error)
	}{
		{"Check", func(w io.Writer, r io.Reader) (Stats, error) { return Check(w, r, lim) }},
		{"Select", func(w io.Writer, r io.Reader) (Stats, error) { return Select(w, r.(io.ReaderAt), nil) }},
	} {
		copied := &bytes.Buffer{}
		if _, err := way.do(copied, bytes.NewReader(packed.Bytes())); err != nil || copied.Len() > 2<<20 {
			t.Fatalf("%s: %d bytes, %v", way.name, copied.Len(), err)
		}
		packed = copied
	}

	same := func(t *testing.T, got string) {
		t.Helper()
		for name := range files {
			if size, blocks := onDisk(t, filepath.Join(got, name)); size != 10<<20 || blocks > 1<<20 {
				t.Errorf("%s: %d bytes, %d on disk", name, size, blocks)
			}
			if sumOf(t, filepath.Join(got, name)) != sumOf(t, filepath.Join(dir, name)) {
				t.Errorf("%s: other content", name)
			}
		}
		if data, err := os.ReadFile(filepath.Join(got, "plain")); string(data) != "plain" {
			t.Errorf("plain: %q, %v", data, err)
		}
	}
	t.Run("Unpack", func(t *testing.T) {
		to := t.TempDir()
		if _, err := Unpack(openRoot(t, to), bytes.NewReader(packed.Bytes()), lim); err != nil {
			t.Fatal(err)
		}
		same(t, to)
	})
	t.Run("Reader", func(t *testing.T) { // as rnx job cp gives them other names
		renamed := &bytes.Buffer{}
		w := tar.NewWriter(renamed)
		for r := NewReader(bytes.NewReader(packed.Bytes())); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err == nil {
				err = w.WriteHeader(&tar.Header{Typeflag: h.Typeflag, Name: "in/" + h.Name, Size: h.Size, Mode: h.Mode, PAXRecords: h.PAXRecords})
			}
			if err == nil {
				_, err = io.Copy(w, r)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		to := t.TempDir()
		if _, err := Unpack(openRoot(t, to), renamed, lim); err != nil {
			t.Fatal(err)
		}
		same(t, filepath.Join(to, "in"))
	})
	t.Run("archive/tar", func(t *testing.T) {
		seen := 0
		for r := tar.NewReader(bytes.NewReader(packed.Bytes())); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if sum(t, r) != sumOf(t, filepath.Join(dir, h.Name)) {
				t.Errorf("%s: other content", h.Name)
			}
			seen++
		}
		if seen != len(files)+1 {
			t.Errorf("%d entries", seen)
		}
	})
	t.Run("GNU tar", func(t *testing.T) {
		to := t.TempDir()
		cmd := exec.Command("tar", "-C", to, "-xf", "-")
		cmd.Stdin = bytes.NewReader(packed.Bytes())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		same(t, to)
		for _, version := range []string{"0.0", "0.1", "1.0"} { // and what it makes is taken: with holes, or at least whole
			made, err := exec.Command("tar", "-C", dir, "--sparse", "--format=posix", "--sparse-version="+version, "-cf", "-", ".").Output()
			if err != nil {
				t.Fatal(err)
			}
			to := t.TempDir()
			if _, err := Unpack(openRoot(t, to), bytes.NewReader(made), DefaultLimits); err != nil {
				t.Fatalf("%s: %v", version, err)
			}
			if version == "0.1" {
				same(t, to)
			}
			if sumOf(t, filepath.Join(to, "middle")) != sumOf(t, filepath.Join(dir, "middle")) {
				t.Errorf("%s: other content", version)
			}
		}
	})
}

// TestHugeHoles: a terabyte of holes takes no time, and what is really there is
// limited.
func TestHugeHoles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	sparse(t, filepath.Join(dir, "huge"), 1<<40, map[int64]string{1 << 39: "in the middle"})
	sparse(t, filepath.Join(dir, "much"), 1<<40, map[int64]string{0: strings.Repeat("x", 2<<20)})
	begin := time.Now()
	var packed, selected bytes.Buffer
	stats, err := PackTree(&packed, openRoot(t, dir), nil, Limits{Bytes: 1 << 20, Entries: 10})
	if err != nil || stats.Beyond != 1 || packed.Len() > 1<<20 {
		t.Fatalf("%+v, %d bytes, %v", stats, packed.Len(), err)
	}
	if _, err := Select(&selected, bytes.NewReader(packed.Bytes()), nil); err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	if _, err := Unpack(openRoot(t, to), &selected, DefaultLimits); err != nil {
		t.Fatal(err)
	}
	if size, blocks := onDisk(t, filepath.Join(to, "huge")); size != 1<<40 || blocks > 1<<20 {
		t.Errorf("%d bytes, %d on disk", size, blocks)
	}
	if took := time.Since(begin); took > 20*time.Second { // zeros for it all would take minutes
		t.Errorf("it took %v", took)
	}
}

// TestManyHoles: a list of pieces that is longer than readers take ends with one
// for all the rest.
func TestManyHoles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pieces := map[int64]string{}
	for i := range int64(maxExtents + 500) {
		pieces[i*8192] = "x"
	}
	sparse(t, filepath.Join(dir, "f"), 140<<20, pieces)
	var packed bytes.Buffer
	if stats, err := PackTree(&packed, openRoot(t, dir), nil, DefaultLimits); err != nil || stats.Beyond+stats.Skipped != 0 {
		t.Fatalf("%+v, %v", stats, err)
	}
	to := t.TempDir()
	if _, err := Unpack(openRoot(t, to), &packed, DefaultLimits); err != nil {
		t.Fatal(err)
	}
	if sumOf(t, filepath.Join(to, "f")) != sumOf(t, filepath.Join(dir, "f")) {
		t.Error("other content")
	}
}

// TestBadHoles: a list of pieces that makes no sense is refused before anything is
// written.
func TestBadHoles(t *testing.T) {
	t.Parallel()
	for name, records := range map[string]map[string]string{
		"overlap":        {"size": "100", "map": "0,5,3,5"},
		"beyond the end": {"size": "9", "map": "0,10"},
		"backwards":      {"size": "100", "map": "50,5,0,5"},
		"too little":     {"size": "100", "map": "0,9"},
		"too much":       {"size": "100", "map": "0,11"},
		"negative":       {"size": "100", "map": "-1,10"},
		"overflow":       {"size": fmt.Sprint(int64(math.MaxInt64)), "map": fmt.Sprintf("%d,10", int64(math.MaxInt64))},
		"odd":            {"size": "100", "map": "0,10,20"},
		"no number":      {"size": "100", "map": "x,10"},
		"no size":        {"map": "0,10"},
		"negative size":  {"size": "-1", "map": "0,10"},
	} {
		for _, prefix := range []string{keyPrefix, hiddenPrefix} {
			t.Run(name+" "+prefix, func(t *testing.T) {
				t.Parallel()
				var made bytes.Buffer
				w := tar.NewWriter(newShowHoles(&made))
				if prefix == hiddenPrefix {
					w = tar.NewWriter(&made)
				}
				h := &tar.Header{Typeflag: tar.TypeReg, Name: "f", Size: 10, Mode: 0o644, PAXRecords: map[string]string{hiddenPrefix + "numblocks": "1"}}
				for k, v := range records {
					h.PAXRecords[hiddenPrefix+k] = v
				}
				if err := w.WriteHeader(h); err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(w, "0123456789"); err != nil {
					t.Fatal(err)
				}
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				to := t.TempDir()
				_, err := Unpack(openRoot(t, to), bytes.NewReader(made.Bytes()), DefaultLimits)
				var kind *joblet.Error
				if !errors.As(err, &kind) || kind.Kind != joblet.InvalidArgument {
					t.Errorf("unpacked: %v", err)
				}
				if entries, err := os.ReadDir(to); len(entries) > 0 || err != nil {
					t.Errorf("left: %v, %v", entries, err)
				}
			})
		}
	}
}
