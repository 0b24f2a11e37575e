package joblet

import (
	"math"
	"slices"
	"strconv"
	"strings"
)

// Profile says how far a job is shut in.
type Profile string

// Profiles.
const (
	ProfileDefault Profile = "default" // also if none is named
	// ProfileStrict leaves out what few programs need: capabilities, debugging,
	// raw sockets.
	ProfileStrict Profile = "strict"
	// ProfileNested lets the job make namespaces of its own and mount in them.
	ProfileNested Profile = "nested"
)

// Profiles returns the names of all profiles.
func Profiles() []string {
	return []string{string(ProfileDefault), string(ProfileStrict), string(ProfileNested)}
}

// Bounds on a Security.
const (
	MaxCalls       = 500 // in each list of system calls
	MaxProfileSize = 64 << 10
	maxID          = 65535 // the highest id that a job has
)

// Security is how far a job is shut in.
type Security struct {
	Profile Profile `json:"profile,omitempty"`
	// AllowCalls and DenyCalls change the profile's list of system calls.
	AllowCalls []string `json:"allow_calls,omitempty"`
	DenyCalls  []string `json:"deny_calls,omitempty"`
	// CapAdd and CapDrop change its capabilities: names as "net_raw" or
	// "CAP_NET_RAW", or "all".
	CapAdd  []string `json:"cap_add,omitempty"`
	CapDrop []string `json:"cap_drop,omitempty"`
	// User is UID or UID:GID within the job; empty: 0:0.
	User string `json:"user,omitempty"`
	// LogDenied has the calls that are refused counted: Job.Denied.
	LogDenied bool `json:"log_denied,omitempty"`
}

// IsZero reports whether it is what every job gets.
func (s Security) IsZero() bool {
	return s.Profile == "" && len(s.AllowCalls)+len(s.DenyCalls)+len(s.CapAdd)+len(s.CapDrop) == 0 && s.User == "" && !s.LogDenied
}

// capabilities are those that a job can have, by the kernel's numbers
// (capabilities(7)). All of them reach no further than the job's user namespace;
// those that the kernel checks in the initial one only would be empty words, and so
// would lease, as no job can take any.
var capabilities = []struct {
	name   string
	number int
	given  bool // by the default profile
}{
	{"chown", 0, true}, {"dac_override", 1, true}, {"dac_read_search", 2, false}, {"fowner", 3, true}, {"fsetid", 4, true},
	{"kill", 5, true}, {"setgid", 6, true}, {"setuid", 7, true}, {"setpcap", 8, true}, {"net_bind_service", 10, true},
	{"net_admin", 12, false}, {"net_raw", 13, false}, {"ipc_owner", 15, false}, {"sys_chroot", 18, true},
	{"sys_ptrace", 19, false}, {"setfcap", 31, false},
}

// CapabilityNames returns what --cap-add and --cap-drop take beside "all".
func CapabilityNames() (names []string) {
	for _, c := range capabilities {
		names = append(names, c.name)
	}
	return names
}

// Capabilities returns the set of the job's capabilities, by their numbers, in a valid
// Security. Named capabilities take precedence over "all".
func (s Security) Capabilities() (set uint64) {
	for _, c := range capabilities {
		has := c.given && s.Profile != ProfileStrict || c.name == "setfcap" && s.Profile == ProfileNested
		switch {
		case holds(s.CapAdd, c.name):
			has = true
		case holds(s.CapDrop, c.name):
			has = false
		case holds(s.CapAdd, "all"):
			has = true
		case holds(s.CapDrop, "all"):
			has = false
		}
		if has {
			set |= 1 << c.number
		}
	}
	return set
}

func holds(list []string, name string) bool {
	return slices.ContainsFunc(list, func(s string) bool { return capabilityName(s) == name })
}

func capabilityName(s string) string {
	return strings.TrimPrefix(strings.ToLower(s), "cap_")
}

// IDs returns the ids of User, in a valid Security.
func (s Security) IDs() (uid, gid uint32) {
	u, g, _ := strings.Cut(s.User, ":")
	uid, _ = parseID(u)
	if g == "" {
		return uid, uid
	}
	gid, _ = parseID(g)
	return uid, gid
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(min(n, math.MaxUint32)), err == nil && n <= maxID && s[0] != '+'
}

// Validate reports the first thing in s that can never work. Whether there are
// such system calls is the daemon's to say.
func (s Security) Validate() error {
	if s.Profile != "" && !slices.Contains(Profiles(), string(s.Profile)) {
		return Errorf(InvalidArgument, "security profile %.40q: must be one of %s", s.Profile, strings.Join(Profiles(), ", "))
	}
	for what, list := range map[string][]string{"--cap-add": s.CapAdd, "--cap-drop": s.CapDrop} {
		if len(list) > len(capabilities)+1 {
			return Errorf(InvalidArgument, "%s: %d names: at most %d are possible", what, len(list), len(capabilities)+1)
		}
		for _, c := range list {
			if name := capabilityName(c); name != "all" && !slices.Contains(CapabilityNames(), name) {
				return Errorf(InvalidArgument, "%s %.40q: must be all, or one of %s", what, c, strings.Join(CapabilityNames(), ", "))
			}
		}
	}
	for _, c := range s.CapAdd {
		if name := capabilityName(c); holds(s.CapDrop, name) {
			return Errorf(InvalidArgument, "capability %s is both added and dropped", name)
		}
	}
	uid, _ := s.IDs()
	switch {
	case s.Profile == ProfileStrict && len(s.CapAdd) > 0:
		return Errorf(InvalidArgument, "--cap-add: the profile strict allows no capabilities")
	case uid != 0 && len(s.CapAdd) > 0:
		return Errorf(InvalidArgument, "--cap-add: only user 0 has capabilities, not user %d", uid)
	}
	for what, list := range map[string][]string{"allowed": s.AllowCalls, "denied": s.DenyCalls} {
		if len(list) > MaxCalls {
			return Errorf(InvalidArgument, "%d system calls are %s: at most %d are possible", len(list), what, MaxCalls)
		}
		for _, c := range list {
			if !validCall(c) {
				return Errorf(InvalidArgument, "system call %.40q: names have lower-case letters, digits and _ only", c)
			}
			if what == "allowed" && slices.Contains(s.DenyCalls, c) {
				return Errorf(InvalidArgument, "system call %s is both allowed and denied", c)
			}
		}
	}
	if s.User == "" {
		return nil
	}
	u, g, both := strings.Cut(s.User, ":")
	for _, id := range []string{u, g} {
		if id == "" && !both {
			continue
		}
		if _, ok := parseID(id); id == "" || !ok {
			return Errorf(InvalidArgument, "user %.40q: must be UID or UID:GID, numbers from 0 to %d", s.User, maxID)
		}
	}
	return nil
}

func validCall(s string) bool {
	return s != "" && len(s) <= MaxNameLen && strings.IndexFunc(s, func(r rune) bool {
		return r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9')
	}) < 0
}

// ParseProfile reads a profile of a user's own: lines of "profile NAME", the one it
// begins with, and of "allow CALL…" and "deny CALL…", system calls by name. What
// is behind # is for people.
func ParseProfile(text string) (s Security, err error) {
	if len(text) > MaxProfileSize {
		return s, Errorf(InvalidArgument, "%d bytes long: at most %d are possible", len(text), MaxProfileSize)
	}
	for i, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		switch {
		case words[0] == "profile" && len(words) == 2 && s.Profile == "":
			s.Profile = Profile(words[1])
		case words[0] == "allow" && len(words) > 1:
			s.AllowCalls = append(s.AllowCalls, words[1:]...)
		case words[0] == "deny" && len(words) > 1:
			s.DenyCalls = append(s.DenyCalls, words[1:]...)
		default:
			return s, Errorf(InvalidArgument, "line %d: %.60q: must be profile NAME (once), allow CALL… or deny CALL…", i+1, line)
		}
	}
	if s.IsZero() {
		return s, Errorf(InvalidArgument, "is empty: must have lines of profile NAME, allow CALL… or deny CALL…")
	}
	return s, s.Validate()
}

// AdminCalls are the system calls that only the role admin may allow a job: io_uring
// has operations of its own, such as IORING_OP_SOCKET, that no filter of system calls
// sees. With it a job gets sockets of all families, to the hypervisor, say.
func AdminCalls() []string {
	return []string{"io_uring_enter", "io_uring_register", "io_uring_setup"}
}

// AdminCall returns the first call that s allows of AdminCalls; empty: none.
func (s Security) AdminCall() string {
	for _, c := range s.AllowCalls {
		if slices.Contains(AdminCalls(), c) {
			return c
		}
	}
	return ""
}

// DeniedCall is a kind of system call that a job was refused.
type DeniedCall struct {
	Call     string `json:"call"`               // its name; "#" and the number of one that is not known; "others"
	Argument string `json:"argument,omitempty"` // for which it was refused, such as AF_ALG, if others are allowed
	Errno    string `json:"errno"`              // what the job got: EPERM, ENOSYS, …
	Count    uint64 `json:"count"`
	Remedy   Remedy `json:"remedy,omitempty"`
}

// Remedy is what lets a job make a call that it was refused.
type Remedy string

// Remedies.
const (
	RemedyNone   Remedy = ""       // no profile does
	RemedyAllow  Remedy = "allow"  // a line "allow CALL" in a profile of one's own
	RemedyDeny   Remedy = "deny"   // its profile says "deny CALL": leave that away
	RemedyNested Remedy = "nested" // --security=nested
)
