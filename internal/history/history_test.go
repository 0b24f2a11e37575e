package history

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

// sample has a different value in each field, so that one that the file forgets
// or confuses shows.
func sample(t *testing.T, n int64) joblet.Sample {
	t.Helper()
	s := joblet.Sample{Time: time.Unix(n, 123)}
	k := n * 100
	var set func(v reflect.Value)
	set = func(v reflect.Value) {
		for i := range v.NumField() {
			f := v.Field(i)
			k++
			switch {
			case f.Type() == reflect.TypeFor[time.Time]():
			case f.Kind() == reflect.Struct:
				set(f)
			case f.CanInt():
				f.SetInt(k)
			case f.CanFloat():
				f.SetFloat(float64(k) + 0.5)
			default:
				t.Fatalf("no rule for %v", f.Type())
			}
		}
	}
	set(reflect.ValueOf(&s).Elem())
	return s
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := Read(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no history: %v", err)
	}
	var want []joblet.Sample
	w := NewWriter(dir)
	for i := range int64(25) {
		want = append(want, sample(t, i+1))
		if err := w.Add(want[i]); err != nil {
			t.Fatal(err)
		}
		if i == 12 { // another daemon goes on
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			w = NewWriter(dir)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := Read(dir)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
}

// TestBounded: the file never has more than its bound, and still tells of the
// whole time, of every peak and of the last moment.
func TestBounded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	w := NewWriter(dir)
	const n = 10*MaxSamples + 7
	for i := range int64(n) {
		s := joblet.Sample{Time: time.Unix(i, 0), Memory: 1, CPUPercent: 50}
		s.CPUUser = time.Duration(i)
		if i == 5000 {
			s.Memory = 1 << 30
		}
		if err := w.Add(s); err != nil {
			t.Fatal(err)
		}
		if i == 7000 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			w = NewWriter(dir)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	got, err := Read(dir)
	if err != nil || len(got) > MaxSamples || len(got) < MaxSamples/2 {
		t.Fatalf("%d samples, %v", len(got), err)
	}
	peaks := 0
	for i, s := range got {
		if s.Memory == 1<<30 {
			peaks++
		}
		if s.CPUPercent != 50 || i > 0 && (!got[i-1].Time.Before(s.Time) || got[i-1].CPUUser >= s.CPUUser) {
			t.Fatalf("sample %d: %+v behind %+v", i, s, got[max(0, i-1)])
		}
	}
	if first, last := got[0].Time.Unix(), got[len(got)-1].Time.Unix(); peaks != 1 || first > 32 || last < n-50 {
		t.Errorf("%d peaks, from %d to %d", peaks, first, last)
	}
	if info, err := os.Stat(filepath.Join(dir, Name)); err != nil || info.Size() > headerSize+MaxSamples*recordSize {
		t.Errorf("%d bytes, %v", info.Size(), err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(append(header(1), encode(make([]joblet.Sample, 2))...))
	f.Add([]byte("JOBMETRI"))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, Name), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if all, err := Read(dir); err == nil && len(all) > MaxSamples {
			t.Fatalf("%d samples", len(all))
		}
		w := NewWriter(dir)
		if err := errors.Join(w.Add(joblet.Sample{}), w.Flush()); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(dir); err != nil {
			t.Fatal(err)
		}
	})
}
