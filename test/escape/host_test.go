package escape

import (
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// host tells why a control may fail without a fault of the attempt.
type host struct {
	options  map[string]string // of the kernel's configuration; nil: not known
	caps     uint64            // of the test
	filtered bool              // the test itself runs under a seccomp filter
	read     func(file string) string
}

// thisHost is the host of the tests.
var thisHost = func() host {
	status := read("/proc/self/status")
	caps, err := strconv.ParseUint(field(status, "CapEff:"), 16, 64)
	if err != nil {
		caps = ^uint64(0)
	}
	return host{options: kernelOptions(), caps: caps, filtered: field(status, "Seccomp:") == "2", read: read}
}()

func read(file string) string {
	data, _ := os.ReadFile(file)
	return string(data)
}

// field returns the word behind a key of /proc/PID/status.
func field(status, key string) string {
	_, rest, _ := strings.Cut(status, "\n"+key)
	line, _, _ := strings.Cut(rest, "\n")
	return strings.TrimSpace(line)
}

// missing returns what this host lacks so that the control of an attempt could not
// get through. An error says that nothing explains it: then the control is broken.
func (h host) missing(a attempt, control result) (string, error) {
	switch control.status {
	case absent:
		if h.options[a.option] == "y" {
			return "", fmt.Errorf("this kernel has CONFIG_%s", a.option)
		}
		if a.option != "" {
			return "no CONFIG_" + a.option, nil
		}
		if a.mayLack {
			return "this kernel has no such feature", nil
		}
	case refused:
		if a.needs != 0 && h.caps&(1<<a.needs) == 0 {
			return fmt.Sprintf("root lacks capability %d", a.needs), nil
		}
		for _, setting := range a.off {
			if file, value, _ := strings.Cut(setting, " "); strings.Contains(" "+strings.TrimSpace(h.read(file))+" ", " "+value+" ") {
				return setting, nil
			}
		}
		if h.filtered || strings.HasPrefix(control.stdout, fmt.Sprintf("signal %d ", unix.SIGSYS)) {
			return "a seccomp filter of the host", nil
		}
		if strings.Contains(control.stdout, "Read-only file system") {
			return "mounted read-only", nil
		}
	}
	return "", errors.New("nothing on this host explains it")
}

// kernelOptions returns the configuration of the running kernel, without "CONFIG_".
func kernelOptions() map[string]string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return nil
	}
	release := unix.ByteSliceToString(name.Release[:])
	for _, path := range []string{"/proc/config.gz", "/boot/config-" + release, "/lib/modules/" + release + "/config"} {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		defer f.Close()
		var r io.Reader = f
		if strings.HasSuffix(path, ".gz") {
			if r, err = gzip.NewReader(f); err != nil {
				continue
			}
		}
		options := make(map[string]string)
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if key, value, ok := strings.Cut(lines.Text(), "="); ok {
				options[strings.TrimPrefix(key, "CONFIG_")] = value
			}
		}
		return options
	}
	return nil
}

// TestMissing tells a host that lacks a feature from a control that is broken.
func TestMissing(t *testing.T) {
	settings := func(file string) string {
		return map[string]string{"/limit": "2\n", "/lockdown": "none [integrity] confidentiality\n"}[file]
	}
	plain := host{options: map[string]string{"HAS": "y", "MODULE": "m"}, caps: ^uint64(0), read: settings}
	unknown := host{caps: ^uint64(0), read: settings}
	weak := host{caps: 1 << unix.CAP_SYS_ADMIN, read: settings}
	filtered := host{caps: ^uint64(0), filtered: true, read: settings}
	for _, test := range []struct {
		name    string
		host    host
		attempt attempt
		control result
		want    string // empty: the control is broken
	}{
		{"not configured", plain, attempt{option: "NOT"}, result{status: absent}, "no CONFIG_NOT"},
		{"a module that cannot be loaded", plain, attempt{option: "MODULE"}, result{status: absent}, "no CONFIG_MODULE"},
		{"configured, and said to be absent", plain, attempt{option: "HAS"}, result{status: absent}, ""},
		{"configuration unknown", unknown, attempt{option: "HAS"}, result{status: absent}, "no CONFIG_HAS"},
		{"off at boot", plain, attempt{mayLack: true}, result{status: absent}, "this kernel has no such feature"},
		{"always there", plain, attempt{}, result{status: absent}, ""},
		{"refused", plain, attempt{option: "NOT", mayLack: true}, result{status: refused}, ""},
		{"broken", plain, attempt{option: "NOT", mayLack: true}, result{status: 2}, ""},
		{"ended by a signal", plain, attempt{mayLack: true}, result{status: -1}, ""},
		{"without the capability", weak, attempt{needs: unix.CAP_SYS_TIME}, result{status: refused}, "root lacks capability 25"},
		{"with the capability", plain, attempt{needs: unix.CAP_SYS_TIME}, result{status: refused}, ""},
		{"switched off", plain, attempt{off: []string{"/other 1", "/limit 2"}}, result{status: refused}, "/limit 2"},
		{"not switched off", plain, attempt{off: []string{"/limit 1", "/none 0"}}, result{status: refused}, ""},
		{"locked down", plain, attempt{off: []string{"/lockdown [integrity]"}}, result{status: refused}, "/lockdown [integrity]"},
		{"not locked down as far", plain, attempt{off: []string{"/lockdown [confidentiality]"}}, result{status: refused}, ""},
		{"under a filter", filtered, attempt{}, result{status: refused}, "a seccomp filter of the host"},
		{"killed by a filter", plain, attempt{}, result{status: refused, stdout: "signal 31 refused: x"}, "a seccomp filter of the host"},
		{"read-only", plain, attempt{}, result{status: refused, stdout: "refused: x: Read-only file system"}, "mounted read-only"},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := test.host.missing(test.attempt, test.control)
			if got != test.want || (err == nil) != (test.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, test.want)
			}
		})
	}
}
