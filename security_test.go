package joblet

import (
	"strings"
	"testing"
)

func TestSecurityValidate(t *testing.T) {
	tests := []struct {
		security Security
		want     string // of the error; empty: none
		caps     uint64
	}{
		{security: Security{}, caps: 0x405fb},
		{security: Security{Profile: ProfileDefault}, caps: 0x405fb},
		{security: Security{Profile: ProfileStrict}, caps: 0},
		{security: Security{Profile: ProfileNested}, caps: 0x405fb | 1<<31},
		{security: Security{CapAdd: []string{"net_raw"}}, caps: 0x405fb | 1<<13},
		{security: Security{CapAdd: []string{"CAP_NET_RAW"}, CapDrop: []string{"All"}}, caps: 1 << 13},
		{security: Security{CapAdd: []string{"all"}, CapDrop: []string{"kill"}}, caps: 0x8008b5df&^(1<<5) | 1<<18},
		{security: Security{CapDrop: []string{"chown"}}, caps: 0x405fa},
		{security: Security{CapAdd: []string{"sys_admin"}}, want: "must be all, or one of"},
		{security: Security{CapAdd: []string{"kill"}, CapDrop: []string{"CAP_KILL"}}, want: "both added and dropped"},
		{security: Security{Profile: "loose"}, want: "must be one of"},
		{security: Security{Profile: ProfileStrict, CapAdd: []string{"kill"}}, want: "no capabilities"},
		{security: Security{User: "1000", CapAdd: []string{"kill"}}, want: "only user 0"},
		{security: Security{CapAdd: []string{"lease"}}, want: "must be all, or one of chown"},
		{security: Security{User: "1000:100"}, caps: 0x405fb},
		{security: Security{User: "65534"}, caps: 0x405fb},
		{security: Security{User: "65535:65535"}, caps: 0x405fb},
		{security: Security{User: "65536"}, want: "numbers from 0 to 65535"},
		{security: Security{User: "0:65536"}, want: "must be UID"},
		{security: Security{User: "-1"}, want: "must be UID"},
		{security: Security{User: "+1"}, want: "must be UID"},
		{security: Security{User: "1:"}, want: "must be UID"},
		{security: Security{User: ":1"}, want: "must be UID"},
		{security: Security{User: "root"}, want: "must be UID"},
		{security: Security{AllowCalls: []string{"re ad"}}, want: "names have lower-case letters"},
		{security: Security{AllowCalls: []string{"read"}, DenyCalls: []string{"read"}}, want: "both allowed and denied"},
		{security: Security{DenyCalls: make([]string, MaxCalls+1)}, want: "at most"},
	}
	for _, test := range tests {
		err := test.security.Validate()
		switch {
		case test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%+v: %v, want %q", test.security, err, test.want)
		case err == nil && test.security.Capabilities() != test.caps:
			t.Errorf("%+v: capabilities %#x, want %#x", test.security, test.security.Capabilities(), test.caps)
		}
	}
	if uid, gid := (Security{User: "7:8"}).IDs(); uid != 7 || gid != 8 {
		t.Errorf("ids %d:%d", uid, gid)
	}
	if uid, gid := (Security{User: "7"}).IDs(); uid != 7 || gid != 7 {
		t.Errorf("ids %d:%d", uid, gid)
	}
}

func FuzzParseProfile(f *testing.F) {
	f.Add("profile strict # as little as possible\nallow ptrace\n\ndeny mkdir mkdirat")
	f.Add("profile")
	f.Add("allow\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseProfile(text)
		if err == nil && (s.IsZero() || s.Validate() != nil) {
			t.Errorf("%q gives %+v", text, s)
		}
	})
}
