package protocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestMessages(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	want := Request{Run: &Run{Dir: "/d", Command: "sh", Args: []string{"a b", ""}, Filter: []byte{0, 1, 255}, TimeoutNanos: 5}}
	if err := WriteMessage(&b, want); err != nil {
		t.Fatal(err)
	}
	whole := bytes.Clone(b.Bytes())
	var got Request
	if err := ReadMessage(&b, &got); err != nil || got.Run == nil || !slices.Equal(got.Run.Args, want.Run.Args) || !bytes.Equal(got.Run.Filter, want.Run.Filter) {
		t.Fatalf("%+v %v", got.Run, err)
	}
	if err := ReadMessage(&b, &got); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	for cut := 1; cut < len(whole); cut++ {
		if err := ReadMessage(bytes.NewReader(whole[:cut]), &got); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
	huge := binary.BigEndian.AppendUint32(nil, maxMessage+1)
	if err := ReadMessage(bytes.NewReader(huge), &got); err == nil || !strings.Contains(err.Error(), "too large") {
		t.Errorf("huge: %v", err)
	}
}

// TestRunBytes: what execve takes need not be UTF-8.
func TestRunBytes(t *testing.T) {
	t.Parallel()
	for _, want := range []Run{
		{Command: "a", Args: []string{"ü"}, Env: []string{"A=b"}, Path: "/bin", WorkDir: "/"},
		{Command: "\xff", Args: []string{"", "\xfe"}, Env: []string{"\xff=1", "B="}, Path: "/\xff", WorkDir: "/\xfe"},
		{Command: "a", Args: []string{"ü"}, Env: []string{"A=\xff"}},
	} {
		sent := want
		var b bytes.Buffer
		var got Request
		if err := errors.Join(WriteMessage(&b, Request{Run: sent.Packed()}), ReadMessage(&b, &got)); err != nil {
			t.Fatal(err)
		}
		if got.Run.Unpack(); !reflect.DeepEqual(*got.Run, want) || !reflect.DeepEqual(sent, want) {
			t.Errorf("got %+v\nwant %+v", *got.Run, want)
		}
	}
}

func FuzzReadMessage(f *testing.F) {
	var b bytes.Buffer
	_ = WriteMessage(&b, Request{Stop: &Stop{Signal: 15}})
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 2, '{', '}'})
	f.Add([]byte{255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		var req Request
		_ = ReadMessage(bytes.NewReader(data), &req)
	})
}
