package app

import (
	"testing"

	"github.com/joblet/joblet"
)

func TestOfferJob(t *testing.T) {
	t.Parallel()
	job := func(id, name string, s joblet.State) joblet.Job {
		return joblet.Job{ID: id + "-0000-4000-8000-000000000000", State: s, Spec: joblet.Spec{Name: name, Command: "sleep", Args: []string{"60"}}}
	}
	web, old, plain := job("aaaaaaaa", "web", joblet.Running), job("abababab", "web", joblet.Failed), job("bbbbbbbb", "", joblet.Completed)
	for prefix, want := range map[string][3]string{
		"":           {"web\tRUNNING aaaaaaaa sleep 60", "abababab\tFAILED web sleep 60", "bbbbbbbb\tCOMPLETED sleep 60"},
		"w":          {"web\tRUNNING aaaaaaaa sleep 60", "", ""},
		"a":          {"aaaaaaaa\tRUNNING web sleep 60", "abababab\tFAILED web sleep 60", ""},
		"bbbbbbbb-0": {"", "", plain.ID + "\tCOMPLETED sleep 60"},
		"x":          {},
	} {
		names := map[string]bool{}
		got := [3]string{offerJob(web, prefix, names), offerJob(old, prefix, names), offerJob(plain, prefix, names)}
		if got != want {
			t.Errorf("%q: got %q, want %q", prefix, got, want)
		}
	}
}
