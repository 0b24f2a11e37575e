package joblet

import (
	"reflect"
	"testing"
)

// FuzzLimits: what a limit is set to is shown in a way that sets it to the same.
func FuzzLimits(f *testing.F) {
	for _, doc := range LimitDocs() {
		for _, value := range []string{"1", "150", "2G", "0-3,5", "1.5", "-1", "64M:1G", ""} {
			f.Add(doc.Name, value)
		}
	}
	f.Add("nofile", "100:unlimited")
	f.Fuzz(func(t *testing.T, name, value string) {
		var l, again Limits
		if l.Set(name, value) != nil || l.Validate() != nil {
			return
		}
		l.Each(func(name, shown string) {
			if err := again.Set(name, shown); err != nil {
				t.Errorf("%s %q is shown as %s %q: %v", name, value, name, shown, err)
			}
		})
		if !reflect.DeepEqual(l, again) {
			t.Errorf("%s %q: %+v is shown as %+v", name, value, l, again)
		}
	})
}
