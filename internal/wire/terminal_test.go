package wire

import (
	"reflect"
	"testing"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/api"
	"github.com/joblet/joblet/internal/testenv"
)

func TestExecRoundTrip(t *testing.T) {
	t.Parallel()
	var seed int64
	var want joblet.ExecSpec
	testenv.Fill(t, reflect.ValueOf(&want).Elem(), &seed)
	odd := joblet.ExecSpec{Command: "a\xff", Args: []string{"", "\xff"}, Env: map[string]string{"\xff": "a", "b": "\xfe"}, WorkDir: "/\xff"}
	for _, want := range []joblet.ExecSpec{want, odd} {
		p := overWire(t, ExecToProto("ref", want))
		if got := ExecFromProto(p); !reflect.DeepEqual(got, want) || p.GetUuid() != "ref" {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
}

func TestAttachRoundTrip(t *testing.T) {
	t.Parallel()
	var seed int64
	var want joblet.AttachOptions
	testenv.Fill(t, reflect.ValueOf(&want).Elem(), &seed)
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
