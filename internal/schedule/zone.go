package schedule

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// loadZone returns the zone with a name, or the one that a POSIX string as
// "CET-1CEST,M3.5.0,M10.5.0/3" describes. Its name is the text, which means the
// same everywhere.
func loadZone(text string) (*time.Location, error) {
	if text != "" && text != "Local" { // which time.LoadLocation knows, and others do not
		if zone, err := time.LoadLocation(text); err == nil {
			return zone, nil
		}
	}
	p, err := parsePOSIX(text)
	switch {
	case err == nil:
		return p.location(text), nil
	case strings.ContainsAny(text, "<>,") || strings.ContainsAny(text, "0123456789") && !strings.Contains(text, "/"):
		return nil, fmt.Errorf("%.60q is not a time zone, and not a POSIX time zone either: %w", text, err)
	}
	if _, err := time.LoadLocation("Europe/Berlin"); err != nil {
		return nil, fmt.Errorf("cannot look up the time zone %.60q: this machine has no time zone data; install tzdata", text)
	}
	return nil, fmt.Errorf("unknown time zone %.60q", text)
}

// Local returns the time zone that TZ names, as its name or as a POSIX string,
// or else the system's. Go itself takes a TZ that it does not know for UTC.
func Local() (*time.Location, error) { return localZone(os.LookupEnv) }

func localZone(env func(string) (string, bool)) (*time.Location, error) {
	tz, ok := env("TZ")
	if !ok {
		return time.Local, nil
	}
	name := strings.TrimPrefix(tz, ":")
	if name == "" {
		return time.UTC, nil
	}
	if filepath.IsAbs(name) {
		zone, err := loadFile(name)
		if err != nil {
			return nil, fmt.Errorf("cannot use TZ=%.60s as the time zone: %w; set TZ to a name such as Europe/Berlin, or unset it", tz, err)
		}
		return zone, nil
	}
	zone, err := loadZone(name)
	if err != nil {
		return nil, fmt.Errorf("cannot use TZ=%.60s as the time zone: %w; set TZ to a name such as Europe/Berlin or to a POSIX time zone such as CET-1CEST,M3.5.0,M10.5.0/3, or unset it", tz, err)
	}
	return zone, nil
}

// loadFile reads a zone's file, which others may have chosen.
func loadFile(name string) (*time.Location, error) {
	if named := afterZoneinfo(name); named != "" {
		if zone, err := time.LoadLocation(named); err == nil {
			return zone, nil
		}
	}
	if fi, err := os.Stat(name); err == nil && !fi.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, err
	}
	return time.LoadLocationFromTZData(name, data)
}

// localNames returns what may be the name of this machine's zone, best first.
func localNames(env func(string) (string, bool), localtime, timezone string) []string {
	tz, ok := env("TZ")
	if tz = strings.TrimPrefix(tz, ":"); ok && !filepath.IsAbs(tz) {
		return []string{cmp.Or(tz, "UTC")}
	}
	var names []string
	if ok {
		localtime, timezone = tz, ""
		names = append(names, afterZoneinfo(tz))
	}
	for _, resolve := range []func(string) (string, error){os.Readlink, filepath.EvalSymlinks} {
		if target, err := resolve(localtime); err == nil {
			names = append(names, afterZoneinfo(target))
		}
	}
	if timezone == "" {
		return names
	}
	if b, err := os.ReadFile(timezone); err == nil {
		names = append(names, strings.TrimSpace(string(b)))
	}
	return names
}

// afterZoneinfo returns a zone's name from its file's.
func afterZoneinfo(file string) string {
	_, name, _ := strings.Cut(filepath.ToSlash(file), "zoneinfo/")
	return name
}

// posixZone is what a POSIX time zone says: standard time, and perhaps another in
// a part of each year.
type posixZone struct {
	std, dst   string // names; no dst: standard time only
	stdOffset  int    // seconds east of Greenwich
	dstOffset  int
	start, end posixRule // of dst
}

// posixRule is a moment of each year.
type posixRule struct {
	kind  byte // 'M': a weekday of a month; 'J': a day without February 29; 'n': a day from 0 on
	month int
	week  int // 5: the last
	day   int
	time  int // seconds after midnight, by the clock before the change
}

// Bounds on what a POSIX time zone may say.
const (
	maxPOSIX    = 255
	maxZoneName = 32
	firstYear   = 1970 // of the changes in a Location
	lastYear    = 2300 // far beyond maxAhead
)

// defaultRules are those of zones that name a second time and no rules, in glibc
// and musl, too.
const defaultRules = ",M3.2.0,M11.1.0"

// parsePOSIX reads the form that POSIX defines for TZ, with the times from -167 to
// 167 hours of RFC 9636.
func parsePOSIX(text string) (z posixZone, err error) {
	if len(text) > maxPOSIX {
		return z, fmt.Errorf("it is %d bytes long: at most %d are possible", len(text), maxPOSIX)
	}
	p := posixParser{rest: text}
	z.std = p.name()
	z.stdOffset = -p.clock(24)
	if p.err != nil || p.rest == "" {
		return z, p.err
	}
	z.dst, z.dstOffset = p.name(), z.stdOffset+3600
	if p.rest != "" && p.rest[0] != ',' {
		z.dstOffset = -p.clock(24)
	}
	if p.err == nil && p.rest == "" {
		p.rest = defaultRules
	}
	z.start = p.rule()
	z.end = p.rule()
	if p.err == nil && p.rest != "" {
		p.fail("the end")
	}
	return z, p.err
}

// posixParser reads from the beginning of rest, until something is wrong.
type posixParser struct {
	rest string
	err  error
}

func (p *posixParser) fail(want string) {
	switch {
	case p.err != nil:
	case p.rest == "":
		p.err = fmt.Errorf("it ends where %s is expected", want)
	default:
		p.err = fmt.Errorf("it has %.40q where %s is expected", p.rest, want)
	}
}

// skip goes past a byte, if it comes next.
func (p *posixParser) skip(b byte) bool {
	if p.err != nil || p.rest == "" || p.rest[0] != b {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

func (p *posixParser) name() string {
	if p.err != nil {
		return ""
	}
	letter := func(r rune) bool { return 'a' <= r|0x20 && r|0x20 <= 'z' }
	text, quoted := strings.CutPrefix(p.rest, "<")
	valid := letter
	if quoted {
		valid = func(r rune) bool { return letter(r) || '0' <= r && r <= '9' || r == '+' || r == '-' }
	}
	n := strings.IndexFunc(text, func(r rune) bool { return !valid(r) })
	if n < 0 {
		n = len(text)
	}
	if n < 3 || n > maxZoneName || quoted && !strings.HasPrefix(text[n:], ">") {
		p.fail("a name of 3 to 32 letters, or one such as <+03>,")
		return ""
	}
	name := text[:n]
	if p.rest = text[n:]; quoted {
		p.rest = p.rest[1:]
	}
	return name
}

// number reads one from low to high.
func (p *posixParser) number(low, high int, what string) int {
	if p.err != nil {
		return 0
	}
	n := 0
	for n < len(p.rest) && '0' <= p.rest[n] && p.rest[n] <= '9' {
		n++
	}
	v, err := strconv.Atoi(p.rest[:min(n, 4)])
	if n == 0 || n > 3 || err != nil || v < low || v > high {
		p.fail(fmt.Sprintf("%s from %d to %d", what, low, high))
		return 0
	}
	p.rest = p.rest[n:]
	return v
}

// clock reads hours, minutes and seconds, perhaps with a sign.
func (p *posixParser) clock(maxHours int) int {
	sign := 1
	if p.skip('-') {
		sign = -1
	} else {
		p.skip('+')
	}
	v := 3600 * p.number(0, maxHours, "a number of hours")
	if p.skip(':') {
		v += 60 * p.number(0, 59, "a number of minutes")
		if p.skip(':') {
			v += p.number(0, 59, "a number of seconds")
		}
	}
	return sign * v
}

func (p *posixParser) rule() posixRule {
	r := posixRule{time: 2 * 3600}
	if !p.skip(',') {
		p.fail("a comma and a day")
	}
	switch {
	case p.skip('M'):
		r.kind = 'M'
		r.month = p.number(1, 12, "a month")
		if !p.skip('.') {
			p.fail("a dot and a week")
		}
		r.week = p.number(1, 5, "a week")
		if !p.skip('.') {
			p.fail("a dot and a day")
		}
		r.day = p.number(0, 6, "a day of the week")
	case p.skip('J'):
		r.kind, r.day = 'J', p.number(1, 365, "a day")
	default:
		r.kind, r.day = 'n', p.number(0, 365, "a day")
	}
	if p.skip('/') {
		r.time = p.clock(167)
	}
	return r
}

// in returns when the rule applies in a year, by a clock with an offset.
func (r posixRule) in(year, offset int) int64 {
	var day time.Time
	switch r.kind {
	case 'M':
		day = time.Date(year, time.Month(r.month), 1, 0, 0, 0, 0, time.UTC)
		day = day.AddDate(0, 0, (r.day-int(day.Weekday())+7)%7+7*(r.week-1))
		if int(day.Month()) != r.month { // there are only four of them
			day = day.AddDate(0, 0, -7)
		}
	case 'J':
		day = time.Date(2001, 1, r.day, 0, 0, 0, 0, time.UTC) // not a leap year
		day = time.Date(year, day.Month(), day.Day(), 0, 0, 0, 0, time.UTC)
	default:
		day = time.Date(year, 1, 1+r.day, 0, 0, 0, 0, time.UTC)
	}
	return day.Unix() + int64(r.time) - int64(offset)
}

// location returns a zone that package time can use. It has each change: package
// time itself reads a rule for all years only at the end of a zone's file, and is
// mistaken there about the last day of leap years.
func (z posixZone) location(name string) *time.Location {
	type change struct {
		at  int64
		dst byte
	}
	var changes []change
	for year := firstYear; z.dst != "" && year <= lastYear; year++ {
		start, end := change{z.start.in(year, z.stdOffset), 1}, change{z.end.in(year, z.dstOffset), 0}
		if end.at < start.at {
			start, end = end, start
		}
		changes = append(changes, start, end)
	}
	// A year's last change may come after the first of the next, or with it, where
	// the second time holds throughout.
	slices.SortStableFunc(changes, func(a, b change) int { return cmp.Compare(a.at, b.at) })
	kept := changes[:0]
	for i, c := range changes {
		if i+1 < len(changes) && changes[i+1].at == c.at || len(kept) > 0 && kept[len(kept)-1].dst == c.dst {
			continue
		}
		kept = append(kept, c)
	}

	// RFC 9636: an empty block of the first version, then one of the second.
	names := z.std + "\x00" + z.dst + "\x00"
	header := func(changes, types, letters int) []byte {
		b := append([]byte("TZif2"), make([]byte, 15)...)
		for _, n := range []int{0, 0, 0, changes, types, letters} {
			b = binary.BigEndian.AppendUint32(b, uint32(n))
		}
		return b
	}
	data := append(header(0, 0, 0), header(len(kept), 2, len(names))...)
	for _, c := range kept {
		data = binary.BigEndian.AppendUint64(data, uint64(c.at))
	}
	for _, c := range kept {
		data = append(data, c.dst)
	}
	data = append(binary.BigEndian.AppendUint32(data, uint32(int32(z.stdOffset))), 0, 0)
	data = append(binary.BigEndian.AppendUint32(data, uint32(int32(z.dstOffset))), 1, byte(len(z.std)+1))
	data = append(data, names+"\n\n"...)
	location, err := time.LoadLocationFromTZData(name, data)
	if err != nil {
		panic(fmt.Sprintf("zone %q: %v", name, err)) // it depends on nothing outside
	}
	return location
}
