package joblet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func TestValidate(t *testing.T) {
	t.Parallel()
	ok := Spec{Command: "bash", Args: []string{"-c", "x"}, Name: "a.b-c_1", Runtime: "python-3.11-ml", WorkDir: "/work", Env: map[string]string{"A_1": "x=y"}}
	if err := ok.Validate(); err != nil {
		t.Fatal(err)
	}
	many := make(map[string]string)
	for i := range 40 {
		many[fmt.Sprintf("V%d", i)] = strings.Repeat("x", 60000)
	}
	small := make(map[string]string)
	for i := range MaxArgEnvSize / (StringCost + 7) {
		small[fmt.Sprintf("V%06d", i)] = ""
	}
	if err := (Spec{Command: "true", Args: make([]string, MaxArgEnvSize/StringCost-2)}).Validate(); err != nil {
		t.Error(err)
	}
	tests := []struct {
		name   string
		change func(s *Spec)
		want   string
	}{
		{"empty command", func(s *Spec) { s.Command = "" }, "no command"},
		{"NUL in an argument", func(s *Spec) { s.Args = []string{"a", "b\x00c"} }, "argument 2: contains a NUL byte at offset 1"},
		{"NUL in a variable", func(s *Spec) { s.Env = map[string]string{"A": "\x00"} }, "environment variable A: contains a NUL"},
		{"long argument", func(s *Spec) { s.Args = []string{strings.Repeat("x", MaxStringLen+1)} }, "at most"},
		{"10 MiB in all", func(s *Spec) { s.Args = strings.Fields(strings.Repeat(strings.Repeat("x", 100000)+" ", 100)) }, "arguments and environment take"},
		{"large environment", func(s *Spec) { s.Env = many }, "arguments and environment take"},
		{"too many arguments", func(s *Spec) { s.Args = make([]string, MaxArgEnvSize/StringCost) }, "at most"},
		{"too many variables", func(s *Spec) { s.Env = small }, "at most"},
		{"variable without a name", func(s *Spec) { s.Env = map[string]string{"": "x"} }, "without a name"},
		{"variable with = in its name", func(s *Spec) { s.SecretEnv = map[string]string{"A=B": "x"} }, "must not contain ="},
		{"variable with NUL in its name", func(s *Spec) { s.Env = map[string]string{"A\x00": "x"} }, "NUL byte"},
		{"variable of ours", func(s *Spec) { s.Env = map[string]string{"JOBLET_JOB_ID": "x"} }, "are reserved"},
		{"runtime outside", func(s *Spec) { s.Runtime = "../etc" }, "runtime name"},
		{"name of dots", func(s *Spec) { s.Name = ".." }, "job name"},
		{"long name", func(s *Spec) { s.Name = strings.Repeat("n", MaxNameLen+1) }, "at most"},
		{"relative workdir", func(s *Spec) { s.WorkDir = "work" }, "absolute"},
		{"workdir outside", func(s *Spec) { s.WorkDir = "/work/../.." }, `must not contain ".."`},
		{"long workdir", func(s *Spec) { s.WorkDir = "/" + strings.Repeat("w", MaxPathLen) }, "at most"},
		{"negative timeout", func(s *Spec) { s.Timeout = -time.Second }, "timeout"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := ok
			test.change(&s)
			err := s.Validate()
			if err == nil || !strings.Contains(err.Error(), test.want) || KindOf(err) != InvalidArgument {
				t.Errorf("got %v (%v), want %q", err, KindOf(err), test.want)
			}
			if err != nil && len(err.Error()) > 400 {
				t.Errorf("the error has %d bytes", len(err.Error()))
			}
		})
	}
}

func TestRedacted(t *testing.T) {
	t.Parallel()
	s := Spec{SecretEnv: map[string]string{"TOKEN": "hunter2"}}
	if got := s.Redacted().SecretEnv["TOKEN"]; got != Mask {
		t.Errorf("got %q", got)
	}
	if s.SecretEnv["TOKEN"] != "hunter2" {
		t.Error("Redacted changed the original")
	}
}

func TestCommandLineBytes(t *testing.T) {
	t.Parallel()
	s := Spec{Command: "a", Args: []string{"\xff", "'\\\xfe\u00fc\n0"}}
	if got, want := s.CommandLine(), `a $'\xff' $'\'\\\xfeü`+"\n0'"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	s := Spec{Command: "bash", Args: []string{"-c", "echo 'x'", ""}}
	if got, want := s.CommandLine(), `bash -c 'echo '\''x'\''' ''`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	for _, s := range States() {
		if got, err := ParseState(strings.ToLower(s.String())); err != nil || got != s {
			t.Errorf("%v: parsed as %v, %v", s, got, err)
		}
		if s.Final() != (len(transitions[s]) == 0) {
			t.Errorf("%v: final %v, but %d states may follow", s, s.Final(), len(transitions[s]))
		}
		if s.Final() && s.Alive() {
			t.Errorf("%v is both final and alive", s)
		}
	}
	// From every state that is not final, a final one can be reached, and the
	// first state of a job is none of the final ones.
	reaches := func(s State) bool {
		seen := map[State]bool{}
		for todo := []State{s}; len(todo) > 0; todo = todo[1:] {
			for _, next := range transitions[todo[0]] {
				if next.Final() {
					return true
				}
				if !seen[next] {
					seen[next] = true
					todo = append(todo, next)
				}
			}
		}
		return false
	}
	for _, s := range States() {
		if !s.Final() && !reaches(s) {
			t.Errorf("%v never ends", s)
		}
		if State(0).MayBecome(s) && s.Final() {
			t.Errorf("a job can begin as %v", s)
		}
	}
	if _, err := ParseState("NOPE"); KindOf(err) != InvalidArgument {
		t.Errorf("unknown state: %v", err)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	a, b := NewID(), NewID()
	if a == b || !ValidID(a) || len(ShortID(a)) != 8 || a[14] != '4' {
		t.Errorf("%s %s", a, b)
	}
	for _, bad := range []string{"", "x", a[:35], a + "0", strings.ToUpper(a[:35]) + "G", strings.Replace(a, "-", "0", 1), "../" + a[3:]} {
		if ValidID(bad) {
			t.Errorf("%q is no id", bad)
		}
	}
}

func TestErrorKind(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("outer: %w", Errorf(NotFound, "inner: %w", fs.ErrNotExist))
	if KindOf(err) != NotFound || !errors.Is(err, fs.ErrNotExist) || err.Error() != "outer: inner: file does not exist" {
		t.Errorf("%v, kind %v", err, KindOf(err))
	}
	if KindOf(errors.New("x")) != Internal {
		t.Error("an error without a kind is internal")
	}
}

func FuzzValidate(f *testing.F) {
	f.Add("bash", "-c", "A", "/work", "name")
	f.Add("", "\x00", "1", "../x", "..")
	f.Fuzz(func(t *testing.T, command, arg, env, dir, name string) {
		s := Spec{Command: command, Args: []string{arg}, Env: map[string]string{env: arg}, WorkDir: dir, Name: name, Runtime: name}
		if s.Validate() != nil {
			return
		}
		data, err := json.Marshal(s)
		var back Spec
		if err := errors.Join(err, json.Unmarshal(data, &back)); err != nil || !reflect.DeepEqual(back, s) {
			t.Errorf("%+v is %s and then %+v, %v", s, data, back, err)
		}
		if strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") || strings.Contains(command+arg+env, "\x00") ||
			strings.Contains(env, "=") || strings.Contains("/"+dir+"/", "/../") {
			t.Errorf("accepted %+v", s)
		}
	})
}

// TestSpecBytes: arguments, variables and paths are bytes, and JSON carries them.
func TestSpecBytes(t *testing.T) {
	t.Parallel()
	const odd = "a\xff\u0000\xed\xa0\x80 <&>\u2028"
	for name, want := range map[string]Spec{
		"text":     {Command: "a <&> \u2028", Args: []string{"", "\ufffd"}, Env: map[string]string{"ü": "\ufffd"}},
		"command":  {Command: odd},
		"argument": {Command: "a", Args: []string{"", odd, "ü"}},
		"workdir":  {Command: "a", WorkDir: "/" + odd},
		"value":    {Command: "a", Env: map[string]string{"A": odd, "B": "ü=", "C": ""}},
		"name":     {Command: "a", Env: map[string]string{odd: "1", odd + "\xfe": "2", "a\ufffd": "3"}},
		"secret":   {Command: "a", SecretEnv: map[string]string{"A": odd, odd: "x"}},
		"upload":   {Command: "a", Uploads: []string{odd, "b"}},
		"all": {Command: odd, Args: []string{odd}, WorkDir: odd, Env: map[string]string{odd: odd}, SecretEnv: map[string]string{odd: odd},
			Uploads: []string{odd}, Labels: map[string]string{"a": "b"}, Retries: 3},
	} {
		data, err := json.Marshal(want)
		if err != nil || !utf8.Valid(data) {
			t.Fatalf("%s: %q, %v", name, data, err)
		}
		var got Spec
		if err := json.Unmarshal(data, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %s\ngot  %+v, %v\nwant %+v", name, data, got, err, want)
		}
		if raw := bytes.Contains(data, []byte(`"raw"`)); raw != (name != "text") {
			t.Errorf("%s: %s", name, data)
		}
	}
	var old Spec
	if err := json.Unmarshal([]byte(`{"command":"a","args":["b"],"timeout":5}`), &old); err != nil || old.Command != "a" || len(old.Args) != 1 || old.Timeout != 5 {
		t.Errorf("%+v %v", old, err)
	}
}

func TestReadableDuration(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{
		0: "0s", time.Second: "1s", time.Minute: "1m", 61 * time.Second: "1m1s", 10 * time.Minute: "10m", time.Hour: "1h",
		time.Hour + 3*time.Second: "1h0m3s", 2*time.Hour + 5*time.Minute: "2h5m", 1500 * time.Millisecond: "1.5s",
	} {
		if got := ReadableDuration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func TestShorten(t *testing.T) {
	t.Parallel()
	word := func(n int) string { return strings.Repeat("x", n) }
	for _, tt := range []struct{ message, want string }{
		{"", ""},
		{"cannot open /a/b: no such file", "cannot open /a/b: no such file"},
		{word(200) + " " + word(200), word(200) + " " + word(200)},
		{"cannot open " + word(5000) + ": no such file", "cannot open " + word(120) + "…" + word(59) + ": no such file"},
		{"a  b\t" + word(201) + "\n\nc\n", "a  b\t" + word(120) + "…" + word(60) + "\n\nc\n"},
		{strings.Repeat("ab ", 1000) + "why", strings.Repeat("ab ", 200) + "…" + strings.Repeat("ab ", 99) + "why"},
		{strings.Repeat("ü", 500) + "ä", strings.Repeat("ü", 60) + "…" + strings.Repeat("ü", 29) + "ä"},
		{strings.Repeat("\x80", 500), strings.Repeat("\x80", 117) + "…" + strings.Repeat("\x80", 57)},
	} {
		if got := Shorten(tt.message); got != tt.want {
			t.Errorf("%.40q: got %q, want %q", tt.message, got, tt.want)
		}
	}
}
