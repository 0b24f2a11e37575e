package service

import "testing"

// FuzzParseRule: a rule is shown in a way that reads as the same one.
func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"alice read bob", "carol control *", "* read shared", "dave control uid:0", "cert:x read cert:y", "a write b", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRule(s)
		if err != nil {
			return
		}
		again, err := ParseRule(r.String())
		if err != nil || again != r {
			t.Errorf("%q is shown as %q: %+v, %v", s, r, again, err)
		}
	})
}
