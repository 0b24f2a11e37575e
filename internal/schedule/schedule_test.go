package schedule

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/joblet/joblet"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// at reads a clock's face in a zone; where it is shown twice, the first.
func at(t testing.TB, text string, loc *time.Location) time.Time {
	t.Helper()
	v, err := time.Parse("2006-01-02 15:04:05", text)
	if err != nil {
		t.Fatal(err)
	}
	return onClock(v, loc)
}

func TestMoments(t *testing.T) {
	t.Parallel()
	berlin := zone(t, "Europe/Berlin")
	now := at(t, "2026-03-04 10:00:00", berlin) // a Wednesday, 09:00 UTC
	for text, want := range map[string]string{
		"2026-03-05T09:00:00Z":         "2026-03-05T09:00:00Z",
		"2026-03-05T09:00:00+05:30":    "2026-03-05T03:30:00Z",
		"2026-03-05T09:00:00.1Z":       "2026-03-05T09:00:01Z",
		"2026-03-05 09:00:00Z":         "2026-03-05T09:00:00Z",
		"2026-03-05 09:00":             "2026-03-05T08:00:00Z",
		"  2026-03-05   09:00:30 ":     "2026-03-05T08:00:30Z",
		"2026-03-05T09:00":             "2026-03-05T08:00:00Z",
		"2026-07-05T09:00:30":          "2026-07-05T07:00:30Z",
		"2026-03-04 09:59":             "2026-03-04T08:59:00Z", // a minute ago is not yet the past
		"2026-03-29 02:30":             "2026-03-29T01:00:00Z", // left out
		"2026-10-25 02:30":             "2026-10-25T00:30:00Z", // twice: the first
		"+1h30m":                       "2026-03-04T10:30:00Z",
		"in 1h30m":                     "2026-03-04T10:30:00Z",
		"in 1h 30m":                    "2026-03-04T10:30:00Z",
		"+2d":                          "2026-03-06T09:00:00Z",
		"30min":                        "2026-03-04T09:30:00Z",
		"1min":                         "2026-03-04T09:01:00Z",
		"45s":                          "2026-03-04T09:00:45Z",
		"45 s":                         "2026-03-04T09:00:45Z",
		"10secs":                       "2026-03-04T09:00:10Z",
		"1sec":                         "2026-03-04T09:00:01Z",
		"90 Seconds":                   "2026-03-04T09:01:30Z",
		"1hour":                        "2026-03-04T10:00:00Z",
		"2 hours":                      "2026-03-04T11:00:00Z",
		"2h30m":                        "2026-03-04T11:30:00Z",
		"1h30min45s":                   "2026-03-04T10:30:45Z",
		"1 hour 30 min":                "2026-03-04T10:30:00Z",
		"1 hour 30 minutes 5 seconds":  "2026-03-04T10:30:05Z",
		"+1 hour 30 minutes 5 seconds": "2026-03-04T10:30:05Z",
		"in 1 hour 30 mins 5 s":        "2026-03-04T10:30:05Z",
		"+1hour":                       "2026-03-04T10:00:00Z",
		"in 30 minutes":                "2026-03-04T09:30:00Z",
		"30m1h":                        "2026-03-04T10:30:00Z",
		"1.5h":                         "2026-03-04T10:30:00Z",
		".5h":                          "2026-03-04T09:30:00Z",
		"1 day":                        "2026-03-05T09:00:00Z",
		"2w":                           "2026-03-18T09:00:00Z",
		"in 1 week":                    "2026-03-11T09:00:00Z",
		"365d":                         "2027-03-04T09:00:00Z",
		"8760h":                        "2027-03-04T09:00:00Z",
		"500ms":                        "2026-03-04T09:00:01Z",
		"+1d12h":                       "2026-03-05T21:00:00Z",
		"+1.5s":                        "2026-03-04T09:00:02Z",
		"+0s":                          "2026-03-04T09:00:00Z",
		"10:01":                        "2026-03-04T09:01:00Z",
		"10:00":                        "2026-03-05T09:00:00Z",
		"9:00":                         "2026-03-05T08:00:00Z",
		"09:00:30":                     "2026-03-05T08:00:30Z",
		"today 17:30":                  "2026-03-04T16:30:00Z",
		"Tomorrow 09:00":               "2026-03-05T08:00:00Z",
		"monday 09:00":                 "2026-03-09T08:00:00Z",
		"mon 9:00":                     "2026-03-09T08:00:00Z",
		"WED 10:30":                    "2026-03-04T09:30:00Z",
		"wed 10:00":                    "2026-03-11T09:00:00Z",
		"tue 00:00":                    "2026-03-09T23:00:00Z",
		now.Format(time.RFC3339Nano):   "2026-03-04T09:00:00Z",
		"2026-03-05T09:00:00.000Z":     "2026-03-05T09:00:00Z",
		"2126-02-01T00:00:00Z":         "2126-02-01T00:00:00Z",
		"+36500d":                      "2126-02-08T09:00:00Z",
		"2026-03-05T09:00:00.9999999Z": "2026-03-05T09:00:01Z",
	} {
		s, err := Parse(text, now)
		if err != nil || s.String() != want {
			t.Errorf("%q: got %v %v, want %s", text, s, err, want)
			continue
		}
		moment := s.Next(time.Time{})
		if s.Repeats() || moment.Format(time.RFC3339) != want || !s.Next(moment.Add(-1)).Equal(moment) || !s.Next(moment).IsZero() {
			t.Errorf("%q: repeats %v, next %v", text, s.Repeats(), moment)
		}
	}
	if s, err := Parse("+1h", time.Now()); err != nil || strings.Contains(fmt.Sprint(s.Next(time.Time{})), "m=") {
		t.Errorf("+1h: got %v %v", s, err)
	}
}

func TestCron(t *testing.T) {
	t.Parallel()
	berlin := zone(t, "Europe/Berlin")
	now := at(t, "2026-03-04 10:00:00", berlin) // a Wednesday
	for _, tt := range []struct{ text, canonical, next string }{
		{"*/5 8-18 * * mon-fri", "CRON_TZ=Europe/Berlin */5 8-18 * * mon-fri", "2026-03-04 10:05:00 CET"},
		{"  0   9 * *\t* ", "CRON_TZ=Europe/Berlin 0 9 * * *", "2026-03-05 09:00:00 CET"},
		{"CRON_TZ=UTC 0 9 * * *", "CRON_TZ=UTC 0 9 * * *", "2026-03-05 09:00:00 UTC"},
		{"TZ=America/New_York 0 9 * * *", "CRON_TZ=America/New_York 0 9 * * *", "2026-03-04 09:00:00 EST"},
		{"CRON_TZ=EST5EDT,M3.2.0,M11.1.0 0 9 * 7 *", "CRON_TZ=EST5EDT,M3.2.0,M11.1.0 0 9 * 7 *", "2026-07-01 09:00:00 EDT"},
		{"TZ=<+0330>-3:30 0 9 * * *", "CRON_TZ=<+0330>-3:30 0 9 * * *", "2026-03-05 09:00:00 +0330"},
		{"CRON_TZ=Europe/Berlin @daily", "CRON_TZ=Europe/Berlin 0 0 * * *", "2026-03-05 00:00:00 CET"},
		{"@hourly", "CRON_TZ=Europe/Berlin 0 * * * *", "2026-03-04 11:00:00 CET"},
		{"@weekly", "CRON_TZ=Europe/Berlin 0 0 * * 0", "2026-03-08 00:00:00 CET"},
		{"@monthly", "CRON_TZ=Europe/Berlin 0 0 1 * *", "2026-04-01 00:00:00 CEST"},
		{"@Yearly", "CRON_TZ=Europe/Berlin 0 0 1 1 *", "2027-01-01 00:00:00 CET"},
		{"0 0 * * 7", "CRON_TZ=Europe/Berlin 0 0 * * 7", "2026-03-08 00:00:00 CET"},
		{"0 0 * * 6-7", "CRON_TZ=Europe/Berlin 0 0 * * 6-7", "2026-03-07 00:00:00 CET"},
		{"0 0 * * 7-7", "CRON_TZ=Europe/Berlin 0 0 * * 7-7", "2026-03-08 00:00:00 CET"},
		{"0 0 29 2 *", "CRON_TZ=Europe/Berlin 0 0 29 2 *", "2028-02-29 00:00:00 CET"},
		{"0 0 13 * fri", "CRON_TZ=Europe/Berlin 0 0 13 * fri", "2026-03-06 00:00:00 CET"}, // either
		{"0 0 31 6,JUL ?", "CRON_TZ=Europe/Berlin 0 0 31 6,JUL ?", "2026-07-31 00:00:00 CEST"},
	} {
		s, err := Parse(tt.text, now)
		if err != nil || s.String() != tt.canonical || !s.Repeats() || !(joblet.Spec{Schedule: s.String()}).Repeats() {
			t.Errorf("%q: got %v %v, want %s", tt.text, s, err, tt.canonical)
			continue
		}
		if got := s.Next(now).Format("2006-01-02 15:04:05 MST"); got != tt.next {
			t.Errorf("%q: next: got %v, want %v", tt.text, got, tt.next)
		}
		again, err := Parse(s.String(), now.UTC())
		if err != nil || again.String() != s.String() || !again.Next(now).Equal(s.Next(now)) {
			t.Errorf("%q: read again: got %v %v", tt.text, again, err)
		}
	}
}

func TestBad(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 4, 10, 0, 0, 0, time.UTC)
	for text, want := range map[string]string{
		"":                                  "09:00",
		" ":                                 "empty",
		"now":                               `"+1h30m"`,
		"someday 09:00":                     "tomorrow 09:00",
		"mon":                               "monday 09:00",
		"2026-03-05":                        "2026-03-01 09:00",
		"25:00":                             "09:00",
		"mon 9":                             "09:00",
		"mon mon 09:00":                     "09:00",
		"today 09:00 x":                     "09:00",
		"2026-02-30T09:00:00Z":              "09:00",
		"today 09:00":                       "is in the past",
		"2026-03-04T09:58:59Z":              "is in the past",
		"2026-03-04 09:00":                  "is in the past",
		"2226-03-04 09:00":                  "100 years",
		"+1":                                "+1h30m",
		"+":                                 "+1h30m",
		"+x":                                "+1h30m",
		"+-1h":                              "has no number",
		"+1d-2h":                            "has no number",
		"++1h":                              "has no number",
		"+65536d":                           "100 years",
		"+65535d2500000h":                   "100 years",
		"+99999999999999999999d":            "100 years",
		"36500d1s":                          "100 years",
		"+70000d70000d":                     "100 years", // more than fits
		"+70000d70000d70000d":               "100 years",
		"+d":                                `"d" has no number`,
		"in 2 moons":                        `"moons" is not a valid unit`,
		"in":                                "+1h30m",
		"1":                                 "+1h30m",
		"30":                                "+1h30m",
		"1h30":                              "30 has no unit",
		"30mn":                              `"mn" is not a valid unit`,
		"9am":                               `"am" is not a valid unit`,
		"1..5h":                             "is not a valid number",
		"1h.m":                              "is not a valid number",
		"1h-30m":                            "has no number",
		"1h 30m x":                          `"x" has no number`,
		"-30min":                            "+1h30m",
		"1 hour 30 min 5":                   "cron",
		"1 5 min":                           "+1h30m",
		"in 1 5 min":                        "1 has no unit",
		"0 0 1 1 s":                         "cron",
		"@every 10m":                        "needs five",
		"@often":                            "@hourly",
		"* * * * * *":                       "6 cron fields",
		"CRON_TZ=UTC * * * *":               "4 cron fields",
		"CRON_TZ=UTC":                       "0 cron fields",
		"CRON_TZ= * * * * *":                "is missing",
		"CRON_TZ=Mars/X * * * * *":          "unknown time zone",
		"TZ=../UTC * * * * *":               "unknown time zone",
		"CRON_TZ=CET-1CEST,M3 * * * * *":    "POSIX",
		"CRON_TZ=UTC+25 * * * * *":          "hours from 0 to 24",
		"60 * * * *":                        "above maximum",
		"* * * * 8":                         "above maximum",
		"a b c d e":                         "mon-fri",
		"*/0 * * * *":                       "positive",
		"5-1 * * * *":                       "beyond end",
		"1,, * * * *":                       "comma",
		", * * * *":                         "comma",
		"0 0 30 2 *":                        "never",
		"0 0 31 4,6,9,11 *":                 "never",
		strings.Repeat("*", 256):            "256 bytes",
		strings.Repeat(" ", 300):            "300 bytes",
		"0 0 * * " + repeat("1", 123) + "1": "too long with its time zone",
	} {
		if _, err := Parse(text, now); joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%.60q: got %v, want %q", text, err, want)
		}
	}
}

func repeat(s string, n int) string { return strings.Repeat(s+",", n) }

// TestClocksAreSet says what happens when clocks are set forward and back.
func TestClocksAreSet(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		zone, cron, after string
		want              string // RFC 3339, without the date where it is that of the one before
	}{
		// A daily job runs once, each day.
		{"Europe/Berlin", "30 2 * * *", "2026-03-28 00:00:00", "03-28T02:30+01:00 03-29T03:00+02:00 03-30T02:30+02:00"},
		{"Europe/Berlin", "30 2 * * *", "2026-10-24 00:00:00", "10-24T02:30+02:00 10-25T02:30+02:00 10-26T02:30+01:00"},
		{"Europe/Berlin", "0 3 * * *", "2026-03-28 12:00:00", "03-29T03:00+02:00 03-30T03:00+02:00"},
		{"Europe/Berlin", "0 2 * * *", "2026-03-28 12:00:00", "03-29T03:00+02:00 03-30T02:00+02:00"},
		{"Europe/Berlin", "0 1-4 * * *", "2026-03-29 00:00:00", "03-29T01:00+01:00 03-29T03:00+02:00 03-29T04:00+02:00"},
		{"Europe/Berlin", "0 1-4 * * *", "2026-10-25 00:00:00", "10-25T01:00+02:00 10-25T02:00+02:00 10-25T03:00+01:00"},
		// Midnight that is left out.
		{"Africa/Cairo", "0 0 * * *", "2026-04-23 12:00:00", "04-24T01:00+03:00 04-25T00:00+03:00"},
		{"Africa/Cairo", "*/30 0-1 24 4 *", "2026-04-23 12:00:00", "04-24T01:00+03:00 04-24T01:30+03:00"},
		{"America/Havana", "0 0 * * *", "2026-10-31 12:00:00", "11-01T00:00-04:00 11-02T00:00-05:00"},
		// An hourly one, and one of minutes, run by real time.
		{"Europe/Berlin", "15 * * * *", "2026-03-29 01:00:00", "03-29T01:15+01:00 03-29T03:15+02:00 03-29T04:15+02:00"},
		{"Europe/Berlin", "15 * * * *", "2026-10-25 01:30:00", "10-25T02:15+02:00 10-25T02:15+01:00 10-25T03:15+01:00"},
		{"Europe/Berlin", "*/30 2 * * *", "2026-10-25 00:00:00", "10-25T02:00+02:00 10-25T02:30+02:00 10-25T02:00+01:00 10-25T02:30+01:00 10-26T02:00+01:00"},
		{"Europe/Berlin", "*/30 2 * * *", "2026-03-28 12:00:00", "03-30T02:00+02:00"},
		{"Australia/Lord_Howe", "*/20 * * * *", "2026-04-05 01:35:00", "04-05T01:40+11:00 04-05T01:40+10:30 04-05T02:00+10:30"},
		{"Asia/Kolkata", "0 * * * *", "2026-04-05 01:35:00", "04-05T02:00+05:30"},
	} {
		s, err := Parse("CRON_TZ="+tt.zone+" "+tt.cron, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
		if err != nil {
			t.Fatal(err)
		}
		after := at(t, tt.after, zone(t, tt.zone))
		var got []string
		for range strings.Fields(tt.want) {
			after = s.Next(after)
			got = append(got, after.Format("01-02T15:04-07:00"))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%v after %s:\n got %s\nwant %s", s, tt.after, strings.Join(got, " "), tt.want)
		}
	}
	// At any time in the hours around it, there is no second run.
	berlin := zone(t, "Europe/Berlin")
	s, err := Parse("CRON_TZ=Europe/Berlin 30 2 * * *", time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC))
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range []time.Time{at(t, "2026-03-29 02:30:00", berlin), at(t, "2026-10-25 02:30:00", berlin)} {
		for ask := run; ask.Sub(run) < 5*time.Hour; ask = ask.Add(7 * time.Minute) {
			if next := s.Next(ask).In(berlin); next.Day() != run.In(berlin).Day()+1 {
				t.Errorf("after %v: got %v", ask, next)
			}
		}
	}
}

func posix(t testing.TB, text string) *time.Location {
	t.Helper()
	z, err := parsePOSIX(text)
	if err != nil {
		t.Fatal(err)
	}
	return z.location(text)
}

func TestZoneOf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 4, 10, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		loc  *time.Location
		want string
	}{
		{time.UTC, "UTC"},
		{zone(t, "Europe/Berlin"), "Europe/Berlin"},
		{time.FixedZone("", 0), "UTC"},
		{time.FixedZone("EST", -5*3600), "EST"},
		{posix(t, "CET-1CEST,M3.5.0,M10.5.0/3"), "CET-1CEST,M3.5.0,M10.5.0/3"},
		{time.FixedZone("", 3600), ""},
		{time.FixedZone("CEST", 7200), ""},
		{time.FixedZone("Europe/Berlin", 7200), ""},
	} {
		s, err := Parse("0 9 * * *", now.In(tt.loc))
		if tt.want == "" {
			if joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(fmt.Sprint(err), "CRON_TZ=Europe/Berlin") {
				t.Errorf("%v: got %v %v", tt.loc, s, err)
			}
			continue
		}
		if err != nil || s.String() != "CRON_TZ="+tt.want+" 0 9 * * *" {
			t.Errorf("%v: got %v %v, want %s", tt.loc, s, err, tt.want)
		}
	}
	// Wherever this runs, the text names a zone, or asks for one.
	s, err := Parse("CRON_TZ=Local 0 9 * * *", now.Local())
	if err == nil && strings.Contains(s.String(), "Local") || err != nil && !strings.Contains(err.Error(), "CRON_TZ=") {
		t.Errorf("local: got %v %v", s, err)
	}
}

func TestLocalNames(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	link := func(name, target string) string {
		p := filepath.Join(dir, name)
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	file := filepath.Join(dir, "timezone")
	if err := os.WriteFile(file, []byte("Asia/Tokyo\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	unset := func(string) (string, bool) { return "", false }
	tz := func(v string) func(string) (string, bool) { return func(string) (string, bool) { return v, true } }
	none := filepath.Join(dir, "none")
	for i, tt := range []struct {
		env                 func(string) (string, bool)
		localtime, timezone string
		want                string // the first that is not empty
	}{
		{tz("Europe/Berlin"), none, file, "Europe/Berlin"},
		{tz(":Europe/Berlin"), none, file, "Europe/Berlin"},
		{tz("/usr/share/zoneinfo/Europe/Berlin"), none, file, "Europe/Berlin"},
		{tz(""), none, file, "UTC"},
		{tz("CET-1CEST,M3.5.0,M10.5.0/3"), none, file, "CET-1CEST,M3.5.0,M10.5.0/3"},
		{tz(link("tz", "/usr/share/zoneinfo/Europe/Berlin")), none, file, "Europe/Berlin"},
		{unset, link("a", "/usr/share/zoneinfo/Europe/Berlin"), none, "Europe/Berlin"},
		{unset, link("b", "../var/db/timezone/zoneinfo/America/Argentina/Ushuaia"), file, "America/Argentina/Ushuaia"},
		{unset, file, file, "Asia/Tokyo"},
		{unset, none, none, ""},
	} {
		names := slices.DeleteFunc(localNames(tt.env, tt.localtime, tt.timezone), func(s string) bool { return s == "" })
		if got := append(names, "")[0]; got != tt.want {
			t.Errorf("%d: got %q, want %q", i, got, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"2026-03-05T09:00:00Z", "2026-03-29 02:30", "+1d12h", "in 1h30m", "9:00", "tomorrow 09:00", "mon 9:00",
		"*/5 8-18 * * mon-fri", "CRON_TZ=Europe/Berlin 30 2 * * *", "TZ=Africa/Cairo */7 * 24 4 *", "@daily", "0 0 29 2 5-7", "CRON_TZ=Australia/Lord_Howe 1-59/9 1,2 * * *",
		"CRON_TZ=CET-1CEST,M3.5.0,M10.5.0/3 30 2 * * *", "TZ=A<-1 * * * * *",
	} {
		f.Add(text, int64(1772614800))
		f.Add(text, int64(1792886400)) // the day before clocks are set back
	}
	berlin := zone(f, "Europe/Berlin")
	f.Fuzz(func(t *testing.T, text string, seconds int64) {
		now := time.Unix(seconds%(1<<33), 0).In(berlin)
		s, err := Parse(text, now)
		if err != nil {
			if joblet.KindOf(err) != joblet.InvalidArgument {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := Parse(s.String(), now.UTC())
		if err != nil || again.String() != s.String() || again.Repeats() != s.Repeats() {
			t.Fatalf("%q is %q: read again: %v %v", text, s, again, err)
		}
		if err := (joblet.Spec{Command: "x", Schedule: s.String()}).Validate(); err != nil || (joblet.Spec{Schedule: s.String()}).Repeats() != s.Repeats() {
			t.Errorf("%q is %q: %v", text, s, err)
		}
		after := now.Add(-time.Hour)
		for range 5 {
			next := s.Next(after)
			if !next.Equal(again.Next(after)) || !next.IsZero() && !next.After(after) {
				t.Fatalf("%q after %v: %v and %v", s, after, next, again.Next(after))
			}
			if next.IsZero() {
				break
			}
			after = next
		}
	})
}
