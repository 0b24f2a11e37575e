package spelling

import (
	"slices"
	"testing"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		wrong string
		bound int
		want  string
	}{
		{"memory", 3, "memory"}, {"memroy", 3, "memory"}, {"emory", 2, "memory"}, {"memoryy", 2, "memory"}, {"memroy", 2, ""},
		{"cpu", 3, "cpus"}, {"mem", 3, "memory"}, {"me", 3, ""}, {"", 3, ""}, {"xyz", 3, ""}, {"", 5, "cpus"},
	} {
		if got := Nearest(test.wrong, slices.Values([]string{"memory", "cpus"}), test.bound); got != test.want {
			t.Errorf("%q within %d: got %q, want %q", test.wrong, test.bound, got, test.want)
		}
	}
}
