package wire

import (
	"reflect"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
)

func TestExecRoundTrip(t *testing.T) {
	t.Parallel()
	var seed int64
	var want joblet.ExecSpec
	fill(t, reflect.ValueOf(&want).Elem(), &seed)
	p, err := ExecToProto("ref", want)
	if err != nil {
		t.Fatal(err)
	}
	if got := ExecFromProto(p); !reflect.DeepEqual(got, want) || p.GetUuid() != "ref" {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for name, e := range map[string]joblet.ExecSpec{
		"argument": {Args: []string{"\xff"}}, "variable": {Env: map[string]string{"A": "\xff"}}, "workdir": {WorkDir: "/\xff"},
	} {
		if _, err := ExecToProto("x", e); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("%s that is not UTF-8: %v", name, err)
		}
	}
}

func TestAttachRoundTrip(t *testing.T) {
	t.Parallel()
	var seed int64
	var want joblet.AttachOptions
	fill(t, reflect.ValueOf(&want).Elem(), &seed)
	p := AttachToProto("ref", want)
	if got, err := AttachFromProto(p); err != nil || got != want || p.GetUuid() != "ref" {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, p := range []*api.AttachJobRequest{
		{Offset: -1}, {Tail: -1}, {Size: &api.WindowSize{}}, {Size: &api.WindowSize{Rows: 24}}, {Size: &api.WindowSize{Rows: 24, Columns: joblet.MaxWindow + 1}},
	} {
		if _, err := AttachFromProto(p); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("%v: %v", p, err)
		}
	}
}
