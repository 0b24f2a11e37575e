// Package schedule says when a job runs: at a moment, or again and again.
//
// Repeating schedules are crontab(5)'s five fields in a time zone with a name.
// When clocks are set, they do as cron(8) does on most systems. A schedule
// whose minute or hour begins with "*" follows real time: it runs whenever the
// clock shows a time that matches, so twice in the hour that clocks are set
// back over, and not in the one that they leave out. Any other one runs once for
// each time that it names: the first time the clock shows it, and if the clock
// never does, as soon as it has been set forward. So a daily job runs every day,
// and once.
//
// Zones are looked up by name: a program that runs where no zones are installed
// must import time/tzdata. POSIX time zones, as TZ may hold them, describe themselves.
package schedule

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/robfig/cron/v3"

	"github.com/joblet/joblet"
)

// Schedule is a moment, or times that repeat. The zero Schedule never comes.
type Schedule struct {
	moment time.Time // without cron

	// cron computes on the clock's face alone, in UTC; next brings in the zone.
	cron     cron.Schedule
	zone     *time.Location
	fields   string
	realTime bool // runs by real time, not by the clock's face
}

// maxAhead bounds times: a later one is a typing error.
const maxAhead = 100 * 365 * 24 * time.Hour

const accepted = `a time such as "2026-03-01T09:00:00Z", "2026-03-01 09:00", "09:00", "tomorrow 09:00", "monday 09:00", "30min" or "+1h30m", or five cron fields such as "*/5 8-18 * * mon-fri", optionally after "CRON_TZ=Europe/Berlin"`

func bad(text, format string, args ...any) error {
	return joblet.Errorf(joblet.InvalidArgument, "schedule %.60q: %w", text, fmt.Errorf(format, args...))
}

// Parse reads what a user writes. Texts that do not say what they refer to refer
// to now and its zone:
//
//	2026-03-01T09:00:00+01:00          RFC 3339
//	2026-03-01 09:00, 2026-03-01T09:00:30
//	30min, 1h30m, +2d, in 1 day 12 h   from now
//	09:00, 9:00:30                     the next one
//	today 17:30, tomorrow 09:00
//	monday 09:00, mon 9:00             the next one
//	*/5 8-18 * * mon-fri               minute, hour, day of month, month, day of week
//	CRON_TZ=Europe/Berlin 0 9 * * *    in a zone; TZ= is the same
//	CRON_TZ=EST5EDT,M3.2.0,M11.1.0 0 9 * * *
//	@hourly, @daily, @weekly, @monthly, @yearly
//
// A moment is rounded up to a full second. If both days of a cron schedule are
// limited, either will do. Sunday is 0 and 7. There is no "@every": times of an
// interval that cron's fields cannot say would depend on when one begins to
// count.
//
// Errors are of kind InvalidArgument; so is a moment more than a minute before
// now. To read the String of a moment that may have passed, give the time when
// it was first read: now matters in no other way then.
func Parse(text string, now time.Time) (Schedule, error) {
	words := strings.Fields(text)
	if now.Location() == time.Local {
		// If TZ is unknown, only what refers to the zone is an error; see known.
		if zone, err := Local(); err == nil {
			now = now.In(zone)
		}
	}
	switch {
	case len(text) > joblet.MaxSchedule:
		return Schedule{}, bad(text, "%d bytes long: at most %d are possible", len(text), joblet.MaxSchedule)
	case len(words) == 0:
		return Schedule{}, bad(text, "is empty: use %s", accepted)
	case len(words) >= 5 && !isDuration(strings.Join(words, " ")), words[0][0] == '@', strings.HasPrefix(words[0], "CRON_TZ="), strings.HasPrefix(words[0], "TZ="):
		return parseCron(text, words, now)
	}
	t, err := parseMoment(text, words, now)
	if err != nil {
		return Schedule{}, err
	}
	if down := t.Truncate(time.Second); down.Equal(t) {
		t = down // without the monotonic clock's reading
	} else {
		t = down.Add(time.Second)
	}
	if ago := now.Sub(t); ago > time.Minute {
		return Schedule{}, bad(text, "is in the past: use a time in the future")
	}
	if t.Sub(now) > maxAhead {
		return Schedule{}, bad(text, "is more than 100 years ahead")
	}
	return Schedule{moment: t.UTC()}, nil
}

func parseMoment(text string, words []string, now time.Time) (time.Time, error) {
	joined := strings.Join(words, " ")
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05Z07:00"} {
		if t, err := time.Parse(layout, joined); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04"} {
		if t, err := time.Parse(layout, joined); err == nil {
			if err := known(now); err != nil {
				return time.Time{}, bad(text, "%w", err)
			}
			return onClock(t, now.Location()), nil
		}
	}
	rest, relative := strings.CutPrefix(joined, "+")
	if !relative {
		rest, relative = strings.CutPrefix(joined, "in ")
	}
	if relative || plainDuration(joined) {
		d, err := parseDuration(rest)
		if err != nil {
			return time.Time{}, bad(text, "%w; use a time from now such as \"30min\", \"+1h30m\" or \"+2d\"", err)
		}
		return now.Add(d), nil
	}

	face := clockFace(now)
	day, last := time.Date(face.Year(), face.Month(), face.Day(), 0, 0, 0, 0, time.UTC), 1
	if len(words) == 2 {
		switch name := strings.ToLower(words[0]); name {
		case "today":
			last = 0
		case "tomorrow":
			day, last = day.AddDate(0, 0, 1), 0
		default:
			weekday, ok := parseWeekday(name)
			if !ok {
				return time.Time{}, bad(text, "must be %s", accepted)
			}
			day, last = day.AddDate(0, 0, (int(weekday-day.Weekday())+7)%7), 7
		}
	}
	clock, err := time.Parse("15:04:05", words[len(words)-1])
	if err != nil {
		clock, err = time.Parse("15:04", words[len(words)-1])
	}
	if err != nil || len(words) > 2 {
		return time.Time{}, bad(text, "must be %s", accepted)
	}
	if err := known(now); err != nil {
		return time.Time{}, bad(text, "%w", err)
	}
	day = day.Add(clock.Sub(clock.Truncate(24 * time.Hour)))
	t := onClock(day, now.Location())
	if last > 0 && !t.After(now) {
		t = onClock(day.AddDate(0, 0, last), now.Location())
	}
	return t, nil
}

// plainDuration reports whether a text is meant as a time from now, without "+": it
// begins with a number and letters.
func plainDuration(s string) bool {
	rest := strings.TrimLeft(s, "0123456789.")
	next, _ := utf8.DecodeRuneInString(strings.TrimPrefix(rest, " "))
	return rest != s && unicode.IsLetter(next)
}

// unitOf returns what a unit of a duration is: one of Go's, days, or a word.
func unitOf(name string) (unit time.Duration, ok bool) {
	switch name {
	case "ns":
		return time.Nanosecond, true
	case "us", "µs", "μs":
		return time.Microsecond, true
	case "ms":
		return time.Millisecond, true
	case "s", "sec", "secs", "second", "seconds":
		return time.Second, true
	case "m", "min", "mins", "minute", "minutes":
		return time.Minute, true
	case "h", "hr", "hrs", "hour", "hours":
		return time.Hour, true
	case "d", "day", "days":
		return oneDay, true
	case "w", "week", "weeks":
		return 7 * oneDay, true
	}
	return 0, false
}

const (
	oneDay      = 24 * time.Hour
	maxDuration = 2 * maxAhead // more would overflow, and is too far ahead anyway
)

// parseDuration reads numbers with their units: 1h30m, 90 min.
func parseDuration(s string) (time.Duration, error) {
	if s = strings.ToLower(strings.TrimSpace(s)); s == "" {
		return 0, errors.New("the time from now is missing")
	}
	var sum time.Duration
	for s != "" {
		number := s[:len(s)-len(strings.TrimLeft(s, "0123456789."))]
		s = strings.TrimLeft(s[len(number):], " ")
		name := s
		if end := strings.IndexAny(s, " 0123456789.+-"); end >= 0 {
			name = s[:end]
		}
		s = strings.TrimLeft(s[len(name):], " ")
		unit, ok := unitOf(name)
		switch {
		case number == "":
			return 0, fmt.Errorf("%.20q has no number", cmp.Or(name, s))
		case name == "":
			return 0, fmt.Errorf("%.20s has no unit", number)
		case !ok:
			return 0, fmt.Errorf("%.20q is not a valid unit: use weeks, days, hours, minutes or seconds", name)
		}
		d, err := times(number, unit)
		if err != nil {
			return 0, err
		}
		if d > maxDuration-sum {
			return 0, errors.New("is more than 100 years ahead")
		}
		sum += d
	}
	return sum, nil
}

// times multiplies a unit by a decimal number. Whole units are exact.
func times(number string, unit time.Duration) (time.Duration, error) {
	whole, fraction, _ := strings.Cut(number, ".")
	part, err := strconv.ParseFloat("0."+fraction+"0", 64)
	if err != nil || number == "." {
		return 0, fmt.Errorf("%.20q is not a valid number", number)
	}
	n, err := strconv.ParseUint("0"+whole, 10, 63)
	if err != nil || n > uint64(maxDuration/unit) {
		return 0, errors.New("is more than 100 years ahead")
	}
	return time.Duration(n)*unit + time.Duration(part*float64(unit)), nil
}

// isDuration reports whether a text is a time from now, and no cron fields.
func isDuration(s string) bool {
	_, err := parseDuration(strings.TrimPrefix(strings.TrimPrefix(s, "+"), "in "))
	return err == nil
}

func parseWeekday(name string) (time.Weekday, bool) {
	for d := time.Sunday; d <= time.Saturday; d++ {
		full := strings.ToLower(d.String())
		if name == full || name == full[:3] {
			return d, true
		}
	}
	return 0, false
}

var nicknames = map[string]string{
	"@hourly":  "0 * * * *",
	"@daily":   "0 0 * * *",
	"@weekly":  "0 0 * * 0",
	"@monthly": "0 0 1 * *",
	"@yearly":  "0 0 1 1 *", "@annually": "0 0 1 1 *",
}

var parser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow)

func parseCron(text string, words []string, now time.Time) (Schedule, error) {
	var zone *time.Location
	var err error
	name, ok := strings.CutPrefix(words[0], "CRON_TZ=")
	if !ok {
		name, ok = strings.CutPrefix(words[0], "TZ=")
	}
	switch {
	case !ok || name == "Local":
		zone, err = zoneOf(now)
	case name == "":
		err = fmt.Errorf("the time zone after CRON_TZ= is missing: use for example CRON_TZ=Europe/Berlin")
	default:
		if zone, err = loadZone(name); err != nil {
			err = fmt.Errorf("%w; use for example CRON_TZ=Europe/Berlin or CRON_TZ=CET-1CEST,M3.5.0,M10.5.0/3", err)
		}
	}
	if err != nil {
		return Schedule{}, bad(text, "%w", err)
	}
	if ok {
		words = words[1:]
	}
	if len(words) == 1 && words[0][0] == '@' {
		fields, ok := nicknames[strings.ToLower(words[0])]
		if !ok {
			return Schedule{}, bad(text, "%.20q must be @hourly, @daily, @weekly, @monthly or @yearly; an interval is five fields, such as \"*/10 * * * *\"", words[0])
		}
		words = strings.Fields(fields)
	}
	if len(words) != 5 {
		return Schedule{}, bad(text, "has %d cron fields and needs five: minute, hour, day of month, month, day of week, such as \"*/5 8-18 * * mon-fri\"", len(words))
	}
	s := Schedule{zone: zone, fields: strings.Join(words, " ")}
	s.realTime = strings.ContainsAny(words[0][:1]+words[1][:1], "*?")
	if len(s.String()) > joblet.MaxSchedule {
		return Schedule{}, bad(text, "is too long with its time zone, %s: at most %d bytes are possible", zone, joblet.MaxSchedule)
	}
	for _, field := range words {
		if slices.Contains(strings.Split(field, ","), "") { // the library takes it for no time at all
			return Schedule{}, bad(text, "%.20q has a comma without a value", field)
		}
	}
	if s.cron, err = parser.Parse(strings.Join(append(words[:4:4], sundays(words[4])), " ")); err != nil {
		return Schedule{}, bad(text, "%s; cron fields are such as \"*/5 8-18 * * mon-fri\"", cronMistake(err))
	}
	if s.Next(now).IsZero() {
		return Schedule{}, bad(text, "never runs: no year has such a day")
	}
	return s, nil
}

// cronMistake returns the error of the library without the names of Go's functions.
func cronMistake(err error) string {
	msg, _, _ := strings.Cut(err.Error(), ": strconv.")
	if value, ok := strings.CutPrefix(msg, "failed to parse int from "); ok {
		return fmt.Sprintf("%.20q is not a valid value", value)
	}
	return msg
}

// sundays writes 7 as what the library knows, 0.
func sundays(field string) string {
	items := strings.Split(field, ",")
	for i, item := range items {
		if from, ok := strings.CutSuffix(item, "-7"); ok {
			items[i] = from + "-6,0"
			if from == "7" {
				items[i] = "0"
			}
		} else if item == "7" {
			items[i] = "0"
		}
	}
	return strings.Join(items, ",")
}

// Repeats reports whether there are many times.
func (s Schedule) Repeats() bool { return s.cron != nil }

// String returns what Parse reads, anywhere, as the same Schedule: RFC 3339 in
// UTC, or five fields behind their zone.
func (s Schedule) String() string {
	if s.fields == "" {
		return s.moment.Format(time.RFC3339)
	}
	return "CRON_TZ=" + s.zone.String() + " " + s.fields
}

// Next returns the first time after a given one, or zero if there is none.
func (s Schedule) Next(after time.Time) time.Time {
	switch {
	case s.cron == nil && s.moment.After(after):
		return s.moment
	case s.cron == nil:
		return time.Time{}
	case s.realTime:
		return s.nextReal(after.In(s.zone))
	}
	face := clockFace(after.In(s.zone))
	for {
		if face = s.cron.Next(face); face.IsZero() {
			return time.Time{}
		}
		// A time that is shown for the second time, or a second one that has
		// been left out, has had its run.
		if t := onClock(face, s.zone); t.After(after) {
			return t
		}
	}
}

// nextReal goes from one setting of the clocks to the next; between them, the
// clock's face and real time are the same.
func (s Schedule) nextReal(t time.Time) time.Time {
	face := clockFace(t)
	for range 1000 {
		next := s.cron.Next(face)
		if next.IsZero() {
			break
		}
		_, end := t.ZoneBounds()
		if !end.IsZero() && !end.After(t) { // as package time has it on the last day of leap years to come
			end = time.Date(t.UTC().Year()+1, 1, 1, 0, 0, 0, 0, time.UTC)
		}
		_, offset := t.Zone()
		next = next.Add(-time.Duration(offset) * time.Second)
		if end.IsZero() || next.Before(end) {
			return next.In(s.zone)
		}
		t = end.In(s.zone)
		face = clockFace(t).Add(-time.Second)
	}
	return time.Time{}
}

// clockFace is what a clock in t's zone shows, as if there were no zones.
func clockFace(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// onClock returns when a clock shows face first, or, if it never does, when it
// has been set to later than that.
func onClock(face time.Time, zone *time.Location) time.Time {
	t := time.Date(face.Year(), face.Month(), face.Day(), face.Hour(), face.Minute(), face.Second(), face.Nanosecond(), zone)
	start, end := t.ZoneBounds()
	switch shown := clockFace(t); {
	case shown.After(face): // left out; t is after that
		return start.In(zone)
	case shown.Before(face):
		return end.In(zone)
	}
	if !start.IsZero() {
		_, offset := t.Zone()
		_, before := start.Add(-time.Second).In(zone).Zone()
		if first := t.Add(-time.Duration(before-offset) * time.Second); before > offset && first.Before(start) {
			return first
		}
	}
	return t
}

// known returns an error if now is in this machine's zone and TZ hides which that is.
func known(now time.Time) error {
	if now.Location() != time.Local {
		return nil
	}
	_, err := Local()
	return err
}

// zoneOf returns now's zone as one that has the same name everywhere.
func zoneOf(now time.Time) (*time.Location, error) {
	if err := known(now); err != nil {
		return nil, err
	}
	zone := now.Location()
	if zone == time.UTC {
		return zone, nil
	}
	names := []string{zone.String()}
	if zone == time.Local || filepath.IsAbs(zone.String()) {
		names = localNames(os.LookupEnv, "/etc/localtime", "/etc/timezone")
	}
	for _, name := range names {
		if name == "" || name == "Local" {
			continue
		}
		if named, err := loadZone(name); err == nil && alike(zone, named, now) {
			return named, nil
		}
	}
	if alike(zone, time.UTC, now) {
		return time.UTC, nil
	}
	return nil, fmt.Errorf("the local time zone, %s, has no name that other machines know; name one before the fields, such as CRON_TZ=Europe/Berlin", cmp.Or(zone.String(), now.Format("-07:00")))
}

// alike reports whether two zones show the same time, now and in the seasons to
// come.
func alike(a, b *time.Location, now time.Time) bool {
	for quarter := range 4 {
		t := now.AddDate(0, 3*quarter, 0)
		_, x := t.In(a).Zone()
		_, y := t.In(b).Zone()
		if x != y {
			return false
		}
	}
	return true
}
