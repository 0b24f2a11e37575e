package flags

import (
	"strconv"
	"time"

	"github.com/joblet/joblet"
)

// ParseInterval reads "2s", "500ms", or "2" for seconds.
func ParseInterval(s string) (time.Duration, error) {
	text := s
	if _, err := strconv.ParseFloat(s, 64); err == nil {
		text += "s"
	}
	d, err := joblet.ParseDuration(text)
	if err != nil || d < 100*time.Millisecond || d > time.Hour {
		return 0, joblet.Errorf(joblet.InvalidArgument, "--interval: %.40q: must be from 100ms to 1h", s)
	}
	return d, nil
}
