// Package flags reads and writes the values of command-line flags: durations, times,
// labels, signals, limits and variables.
package flags

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/joblet/joblet"
)

// parseMoment reads a time: RFC 3339, a date and perhaps a time of day here, or
// how long ago it was.
func parseMoment(s string, now time.Time) (time.Time, error) {
	for _, layout := range []string{
		time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02",
	} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	d, err := joblet.ParseDuration(s)
	if err != nil {
		return time.Time{}, joblet.Errorf(joblet.InvalidArgument,
			"%.40q is not a valid time; examples: 2026-01-31, 2026-01-31T15:04, a time with a zone (RFC 3339), or an age such as 2h or 3d", s)
	}
	return now.Add(-d), nil
}

// MomentFlag reads the time that a flag gives, none when it was not given.
func MomentFlag(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := parseMoment(s, now)
	if err != nil {
		return t, joblet.Errorf(joblet.InvalidArgument, "%s: %w", flag, err)
	}
	return t, nil
}

// ParseRetryOn reads exit statuses as parseStatuses, and the word "lost" among them.
func ParseRetryOn(s string) (statuses []int, lost bool, err error) {
	var rest []string
	for part := range strings.SplitSeq(s, ",") {
		if strings.EqualFold(strings.TrimSpace(part), "lost") {
			lost = true
		} else {
			rest = append(rest, part)
		}
	}
	if rest != nil {
		statuses, err = parseStatuses(strings.Join(rest, ","))
	}
	return statuses, lost, err
}

// parseStatuses reads exit statuses, "1,3,100-110", and returns them in order.
func parseStatuses(s string) ([]int, error) {
	var all []int
	for part := range strings.SplitSeq(s, ",") {
		low, high, isRange := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseUint(low, 10, 8)
		last := first
		if isRange && err == nil {
			last, err = strconv.ParseUint(high, 10, 8)
		}
		if err != nil || first == 0 || last < first {
			return nil, joblet.Errorf(joblet.InvalidArgument, "%.40q is not a list of exit statuses: use numbers from 1 to 255, such as 1,3,100-110, or \"lost\"", part)
		}
		for status := first; status <= last; status++ {
			all = append(all, int(status))
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// FormatStatuses is parseStatuses backwards.
func FormatStatuses(all []int) string {
	var b strings.Builder
	for i := 0; i < len(all); {
		last := i
		for last+1 < len(all) && all[last+1] == all[last]+1 {
			last++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(all[i]))
		if last > i {
			b.WriteByte('-')
			b.WriteString(strconv.Itoa(all[last]))
		}
		i = last + 1
	}
	return b.String()
}

// ParseLabels reads "name=value", "name" for an empty value.
func ParseLabels(given []string) (map[string]string, error) {
	if len(given) == 0 {
		return nil, nil
	}
	labels := make(map[string]string, len(given))
	for _, g := range given {
		name, value, _ := strings.Cut(g, "=")
		if err := joblet.ValidLabels(map[string]string{name: value}); err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--label: %w", err)
		}
		labels[name] = value
	}
	return labels, nil
}

// ParseLabelMatches reads the labels that jobs must have.
func ParseLabelMatches(given []string) ([]joblet.LabelMatch, error) {
	var all []joblet.LabelMatch
	for _, g := range given {
		m, err := joblet.ParseLabelMatch(g)
		if err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--label: %w", err)
		}
		all = append(all, m)
	}
	return all, nil
}

// ParseStates reads names of states.
func ParseStates(given []string) ([]joblet.State, error) {
	var all []joblet.State
	for _, name := range given {
		s, err := joblet.ParseState(name)
		if err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "--status: %w", err)
		}
		all = append(all, s)
	}
	return all, nil
}
