package schedule

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPOSIXZones compares POSIX zones with those of the database that have the
// same rules.
func TestPOSIXZones(t *testing.T) {
	t.Parallel()
	for text, name := range map[string]string{
		"CET-1CEST,M3.5.0,M10.5.0/3":                   "Europe/Berlin",
		"CET-1CEST-2,M3.5.0/02:00:00,M10.5.0/03:00:00": "Europe/Berlin",
		"EST5EDT":                              "America/New_York", // with rules that it does not name
		"EST5EDT,M3.2.0,M11.1.0":               "America/New_York",
		"AEST-10AEDT,M10.1.0,M4.1.0/3":         "Australia/Sydney",
		"<+1030>-10:30<+11>-11,M10.1.0,M4.1.0": "Australia/Lord_Howe",
		"IST-1GMT0,M10.5.0,M3.5.0/1":           "Europe/Dublin",
		"IST-2IDT,M3.4.4/26,M10.5.0":           "Asia/Jerusalem",
		"<-02>2<-01>,M3.5.0/-1,M10.5.0/0":      "America/Nuuk",
		"IST-5:30":                             "Asia/Kolkata",
		"<+0545>-5:45":                         "Asia/Kathmandu",
		"UTC0":                                 "UTC",
		"UTC+3":                                "Etc/GMT+3", // west of Greenwich
		"<+1245>-12:45<+1345>,M9.5.0/2:45,M4.1.0/3:45":          "Pacific/Chatham",
		"XXX4YYY3,J1/0,J365/25":                                 "Etc/GMT+3", // all year
		"XXX3EDT4,0/0,J365/23":                                  "Etc/GMT+4",
		"<" + strings.Repeat("X", 32) + ">3":                    "Etc/GMT+3",
		strings.Repeat("X", 32) + "5" + strings.Repeat("Y", 32): "America/New_York",
	} {
		z, err := parsePOSIX(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, want := z.location(text), zone(t, name)
		if got.String() != text {
			t.Errorf("%s: got the name %s", text, got)
		}
		from := time.Date(2024, 6, 1, 0, 0, 0, 0, time.UTC)
		for at := from; at.Year() < 2037; at = at.Add(15 * time.Minute) {
			_, x := at.In(got).Zone()
			_, y := at.In(want).Zone()
			if x != y {
				t.Errorf("%s and %s at %v: got %d, want %d", text, name, at, x, y)
				break
			}
		}
	}
	z, err := parsePOSIX("CET-1CEST,M3.5.0,M10.5.0/3")
	if err != nil {
		t.Fatal(err)
	}
	if got := time.Date(2126, 7, 1, 0, 0, 0, 0, z.location("x")).Format(time.RFC822Z); got != "01 Jul 26 00:00 +0200" {
		t.Errorf("in 100 years: got %s", got)
	}
	if got := time.Date(2026, 7, 1, 0, 0, 0, 0, z.location("x")).Format("MST"); got != "CEST" {
		t.Errorf("got the name %s", got)
	}
}

func TestNoPOSIXZones(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                               "a name of 3",
		"CE":                             "a name of 3",
		"CE1":                            "a name of 3",
		"CET":                            "it ends where a number of hours",
		"CET-":                           "it ends where a number of hours",
		"CET25":                          "hours from 0 to 24",
		"CET1:60":                        "minutes from 0 to 59",
		"CET1:":                          "it ends where a number of minutes",
		"CET1:0:60":                      "seconds from 0 to 59",
		"CET1:0:0:0":                     `has ":0" where a name`,
		"CET 1":                          `has " 1" where`,
		"CET-1CEST,":                     "it ends where a day",
		"CET-1CEST,M3.5.0":               "it ends where a comma",
		"CET-1CEST,M3.5.0;M10.5.0":       "where a comma",
		"CET-1CEST,M13.5.0,M10.5.0/3":    "a month from 1 to 12",
		"CET-1CEST,M3.6.0,M10.5.0/3":     "a week from 1 to 5",
		"CET-1CEST,M3.5.7,M10.5.0/3":     "a day of the week from 0 to 6",
		"CET-1CEST,M3.5,M10.5.0/3":       "a dot and a day",
		"CET-1CEST,M3,M10.5.0/3":         "a dot and a week",
		"CET-1CEST,J0,J1":                "a day from 1 to 365",
		"CET-1CEST,366,1":                "a day from 0 to 365",
		"CET-1CEST,M3.5.0/168,M10.5.0/3": "hours from 0 to 167",
		"CET-1CEST,M3.5.0,M10.5.0/3x":    `has "x" where the end`,
		"<+1":                            "a name of 3",
		"<+01>":                          "it ends where a number of hours",
		"<+01":                           "a name of 3",
		"<é€é>1":                         "a name of 3",
		"ÄÖÜ1":                           "a name of 3",
		strings.Repeat("X", 33) + "1":    "a name of 3 to 32",
		"CET00000000000000000000001":     "hours",
		strings.Repeat("X", 256):         "256 bytes",
	} {
		if _, err := parsePOSIX(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

func TestLocalZone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	if err := os.WriteFile(garbage, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	at := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	for tz, want := range map[string]string{
		"":                                  "+00:00",
		":":                                 "+00:00",
		"UTC":                               "+00:00",
		"Europe/Berlin":                     "+02:00",
		":Europe/Berlin":                    "+02:00",
		"CET-1CEST,M3.5.0,M10.5.0/3":        "+02:00",
		":CET-1CEST,M3.5.0,M10.5.0/3":       "+02:00",
		"/usr/share/zoneinfo/Europe/Berlin": "+02:00",
		"Europe/Berln":                      `unknown time zone "Europe/Berln"; set TZ to`,
		"Local":                             `zone "Local"`,
		"CET":                               "+02:00", // a name
		"XYZ":                               `zone "XYZ"`,
		"CET-1CEST,M3.5.0":                  "a comma and a day",
		"../../etc/passwd":                  "unknown time zone",
		dir:                                 "it is not a regular file",
		garbage:                             "malformed",
		filepath.Join(dir, "none"):          "no such file",
	} {
		zone, err := localZone(func(string) (string, bool) { return tz, true })
		if strings.HasPrefix(want, "+") {
			if err != nil || at.In(zone).Format("-07:00") != want {
				t.Errorf("TZ=%s: got %v %v, want %s", tz, zone, err, want)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("TZ=%s: got %v %v, want %q", tz, zone, err, want)
		}
	}
	if zone, err := localZone(func(string) (string, bool) { return "", false }); err != nil || zone != time.Local {
		t.Errorf("without TZ: got %v %v", zone, err)
	}
}

// TestLastDayOfLeapYears is about years whose changes are in no zone's file.
func TestLastDayOfLeapYears(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Europe/Berlin", "CET-1CEST,M3.5.0,M10.5.0/3"} {
		now := time.Date(2040, 12, 31, 11, 0, 0, 0, time.UTC)
		s, err := Parse("CRON_TZ="+name+" */7 * * * *", now)
		if next := s.Next(now); err != nil || !next.Equal(now.Add(7*time.Minute)) {
			t.Errorf("%s: got %v %v", name, next, err)
		}
	}
}

func FuzzPOSIX(f *testing.F) {
	for _, text := range []string{
		"CET-1CEST,M3.5.0,M10.5.0/3", "EST5EDT", "<+1030>-10:30<+11>-11,M10.1.0,M4.1.0", "XXX3EDT4,0/0,J365/23", "UTC+3", "IST-5:30:15", "A-1B,J1/-167,365/167:59:59",
	} {
		f.Add(text, int64(1792886400))
	}
	f.Fuzz(func(t *testing.T, text string, seconds int64) {
		z, err := parsePOSIX(text)
		if err != nil {
			return
		}
		location := z.location(text)
		at := time.Unix(seconds%(1<<34), 0).In(location)
		if name, offset := at.Zone(); name != z.std && name != z.dst || offset != z.stdOffset && offset != z.dstOffset {
			t.Errorf("%q at %d: %s %d", text, at.Unix(), name, offset)
		}
		start, end := at.ZoneBounds()
		if !start.IsZero() && start.After(at) || !end.IsZero() && !end.After(at) {
			t.Errorf("%q at %d: from %v to %v", text, at.Unix(), start, end)
		}
	})
}
