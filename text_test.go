package joblet

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for s, want := range map[string]time.Duration{
		"0": 0, "90s": 90 * time.Second, "2h30m": 150 * time.Minute, "3d": 3 * day, "1w2d3h": 9*day + 3*time.Hour, "1d12h": 36 * time.Hour,
		"": -1, "d": -1, "3": -1, "-1h": -1, "-3d": -1, "1d2w": -1, "1.5d": -1, "1d1d": -1, "9999999w": -1, "1y": -1,
	} {
		got, err := ParseDuration(s)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: got %v, %v; want %v", s, got, err, want)
		}
	}
}
