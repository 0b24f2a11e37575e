package joblet

import (
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestLimitsSet(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, value string
		want        Limits
		err         string
	}{
		{"max-cpu", "250", Limits{CPUPercent: 250}, ""},
		{"max-cpu", "0", Limits{}, "between 1 and"},
		{"max-cpu", "1e9", Limits{}, "not a whole number"},
		{"cpu-cores", "0-1,3", Limits{CPUCores: "0-1,3"}, ""},
		{"cpu-cores", "3-1", Limits{}, "is not a valid list of processors"},
		{"cpu-cores", "0-99999", Limits{}, "is not a valid list of processors"},
		{"cpu-weight", "10000", Limits{CPUWeight: 10000}, ""},
		{"max-memory", "512", Limits{MemoryBytes: 512 << 20}, ""}, // MiB
		{"max-memory", "2G", Limits{MemoryBytes: 2 << 30}, ""},
		{"max-memory", "1.5g", Limits{MemoryBytes: 3 << 29}, ""},
		{"max-memory", "1K", Limits{}, "between 4M and"},
		{"max-memory", "9999T", Limits{}, "between"},
		{"max-memory", "-1", Limits{}, "not a valid size"},
		{"memory-high", "64M", Limits{MemoryHighBytes: 64 << 20}, ""},
		{"max-pids", "1", Limits{MaxPIDs: 1}, ""},
		{"max-iobps", "10M", Limits{IOBps: 10 << 20}, ""},
		{"max-iobps", "1000000", Limits{IOBps: 1000000}, ""}, // bytes
		{"max-read-bps", "1", Limits{}, "between 4K and"},
		{"max-write-bps", "4096", Limits{WriteBps: 4096}, ""},
		{"max-iops", "100", Limits{IOps: 100}, ""},
		{"max-disk", "64", Limits{DiskBytes: 64 << 20}, ""},
		{"shm-size", "64", Limits{ShmBytes: 64 << 20}, ""},
		{"shm-size", "4K", Limits{ShmBytes: 4096}, ""},
		{"shm-size", "4095B", Limits{}, "between"},
		{"nofile", "64", Limits{Rlimits: map[string]Rlimit{"nofile": {64, 64}}}, ""},
		{"nofile", "64:unlimited", Limits{Rlimits: map[string]Rlimit{"nofile": {64, Unlimited}}}, ""},
		{"nofile", "64:32", Limits{}, "must not exceed the hard limit"},
		{"nofile", "many", Limits{}, "is not a valid limit"},
		{"nice", "1", Limits{}, "unknown limit"},
	} {
		var got Limits
		err := got.Set(test.name, test.value)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) || KindOf(err) != InvalidArgument {
				t.Errorf("%s=%s: got %v, want %q", test.name, test.value, err, test.err)
			}
			continue
		}
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s=%s: got %+v, %v, want %+v", test.name, test.value, got, err, test.want)
		}
	}
}

// full has all limits.
var full = Limits{
	CPUPercent: 150, CPUCores: "0-1", CPUWeight: 7, MemoryBytes: 1 << 33, MemoryHighBytes: 1<<32 + 4096, SwapBytes: 1 << 20, MaxPIDs: 99,
	IOBps: 1 << 20, ReadBps: 4097, WriteBps: 3 << 20, IOps: 1000, DiskBytes: 1 << 28, ShmBytes: 1<<27 + 4096,
	Rlimits: map[string]Rlimit{"nofile": {1, Unlimited}, "core": {0, 0}},
}

// TestLimitsEach: what Each tells, Set reads back.
func TestLimitsEach(t *testing.T) {
	t.Parallel()
	var back Limits
	n := 0
	full.Each(func(name, value string) {
		n++
		if err := back.Set(name, value); err != nil {
			t.Error(err)
		}
	})
	if !reflect.DeepEqual(back, full) || n != len(LimitDocs())+2 {
		t.Errorf("%d limits, got %+v", n, back)
	}
	if (Limits{}).IsZero() == full.IsZero() {
		t.Error("IsZero")
	}
	for _, doc := range LimitDocs() { // each has a name that Set knows
		if err := new(Limits).Set(doc.Name, "?"); err == nil || strings.Contains(err.Error(), "unknown limit") {
			t.Errorf("%s: %v", doc.Name, err)
		}
	}
}

func TestLimitsValidate(t *testing.T) {
	t.Parallel()
	if err := full.Validate(); err != nil {
		t.Error(err)
	}
	for want, l := range map[string]Limits{
		"--max-cpu":                      {CPUPercent: -1},
		"--max-memory":                   {MemoryBytes: 1},
		"must not exceed --max-memory":   {MemoryBytes: 1 << 30, MemoryHighBytes: 1 << 31},
		"requires --max-memory":          {SwapBytes: 1 << 30},
		"--cpu-cores":                    {CPUCores: "x"},
		"unknown resource limit":         {Rlimits: map[string]Rlimit{"x": {}}},
		"must not exceed the hard limit": {Rlimits: map[string]Rlimit{"core": {2, 1}}},
	} {
		if err := l.Validate(); err == nil || !strings.Contains(err.Error(), want) || KindOf(err) != InvalidArgument {
			t.Errorf("%+v: got %v, want %s", l, err, want)
		}
	}
	spec := Spec{Command: "true", Limits: Limits{MaxPIDs: -1}}
	if spec.Validate() == nil {
		t.Error("a spec with a bad limit is valid")
	}
}

// TestLimitsCeiling: what the daemon's configuration says beside what is asked.
func TestLimitsCeiling(t *testing.T) {
	t.Parallel()
	ceiling := Limits{CPUPercent: 200, CPUCores: "0-3", MemoryBytes: 1 << 30, ReadBps: 1 << 20, Rlimits: map[string]Rlimit{"nofile": {1024, 1024}}}
	for _, test := range []struct {
		asked Limits
		ok    bool
	}{
		{Limits{}, true},
		{Limits{CPUPercent: 200}, true},
		{Limits{CPUPercent: 201}, false},
		{Limits{CPUCores: "2"}, true},
		{Limits{CPUCores: "2,4"}, false},
		{Limits{MemoryBytes: 1<<30 + 1}, false},
		{Limits{IOBps: 1 << 19}, true},
		{Limits{IOBps: 1 << 21}, true}, // the ceiling's own limit on reading takes precedence
		{Limits{ReadBps: 1 << 21}, false},
		{Limits{MaxPIDs: 1 << 20}, true},
		{Limits{Rlimits: map[string]Rlimit{"nofile": {64, 4096}}}, false},
		{Limits{Rlimits: map[string]Rlimit{"core": {0, Unlimited}}}, true},
	} {
		got := test.asked.Capped(ceiling)
		err := got.Within(ceiling)
		if (err == nil) != test.ok || err != nil && KindOf(err) != PermissionDenied {
			t.Errorf("%+v: %v", test.asked, err)
		}
	}
	got := Limits{MaxPIDs: 5, Rlimits: map[string]Rlimit{"core": {1, 1}}}.Or(full)
	want := full
	want.MaxPIDs, want.Rlimits = 5, map[string]Rlimit{"nofile": {1, Unlimited}, "core": {1, 1}}
	if !reflect.DeepEqual(got, want) || full.Rlimits["core"].Hard != 0 {
		t.Errorf("got %+v", got)
	}
	if r, w, ro, wo := (Limits{IOBps: 10, WriteBps: 20, IOps: 5}).Rates(); r != 10 || w != 20 || ro != 5 || wo != 5 {
		t.Error(r, w, ro, wo)
	}
}

func TestFormatSize(t *testing.T) {
	t.Parallel()
	for n, want := range map[int64]string{0: "0", 1: "1", 1000: "1000", 1024: "1K", 1536: "1536", 3 << 19: "1536K", 1 << 30: "1G", 1 << 50: "1024T"} {
		got := FormatSize(n)
		if back, err := ParseSize(got); got != want || err != nil || back != n {
			t.Errorf("%d: got %s, %d, %v", n, got, back, err)
		}
	}
}

// FuzzLimits: whatever Set takes is valid by itself, and says the same again.
func FuzzLimits(f *testing.F) {
	full.Each(func(name, value string) { f.Add(name, value) })
	f.Add("max-memory", "1.5G")
	f.Add("cpu-cores", "0-8191")
	f.Fuzz(func(t *testing.T, name, value string) {
		var l Limits
		if l.Set(name, value) != nil {
			return
		}
		if err := l.Validate(); err != nil && name != "max-swap" {
			t.Fatal(err)
		}
		var back Limits
		l.Each(func(name, value string) {
			if err := back.Set(name, value); err != nil {
				t.Fatal(err)
			}
		})
		if !reflect.DeepEqual(back, l) {
			t.Fatalf("%+v became %+v", l, back)
		}
	})
}

func TestFormatCPUs(t *testing.T) {
	t.Parallel()
	for want, cpus := range map[string][]int{"": nil, "0": {0}, "0-1": {0, 1}, "1,3": {1, 3}, "0-2,4,6-7": {0, 1, 2, 4, 6, 7}} {
		if got := FormatCPUs(cpus); got != want {
			t.Errorf("%v: got %q, want %q", cpus, got, want)
		}
		if back, err := ParseCPUs(want); want != "" && (err != nil || !slices.Equal(back, cpus)) {
			t.Errorf("%q: read as %v, %v", want, back, err)
		}
	}
}
