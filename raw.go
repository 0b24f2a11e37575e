package joblet

import (
	"bytes"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Arguments, variables and paths are bytes, which need not be UTF-8, and JSON and
// protobuf texts are. What is not UTF-8 they carry a second time, as bytes: RawText
// and the like return those, and FromRaw and the like put them in the text's place.

// RawText returns s as bytes if it is not UTF-8, and else nil.
func RawText(s string) []byte {
	if utf8.ValidString(s) {
		return nil
	}
	return []byte(s)
}

// FromRaw returns what raw holds, or text if that is nothing.
func FromRaw(text string, raw []byte) string {
	if len(raw) > 0 {
		return string(raw)
	}
	return text
}

// RawTexts returns all of list as bytes if one of it is not UTF-8, and else nil.
func RawTexts(list []string) [][]byte {
	if !slices.ContainsFunc(list, func(s string) bool { return !utf8.ValidString(s) }) {
		return nil
	}
	raw := make([][]byte, len(list))
	for i, s := range list {
		raw[i] = []byte(s)
	}
	return raw
}

// FromRawTexts is FromRaw for a list.
func FromRawTexts(texts []string, raw [][]byte) []string {
	if len(raw) == 0 {
		return texts
	}
	texts = make([]string, len(raw))
	for i, b := range raw {
		texts[i] = string(b)
	}
	return texts
}

// RawEnv returns an environment as NAME=VALUE, sorted, if a text of it is not UTF-8,
// and else nil.
func RawEnv(env map[string]string) [][]byte {
	valid := true
	for name, value := range env {
		valid = valid && utf8.ValidString(name) && utf8.ValidString(value)
	}
	if valid {
		return nil
	}
	var raw [][]byte
	for _, name := range slices.Sorted(maps.Keys(env)) {
		raw = append(raw, []byte(name+"="+env[name]))
	}
	return raw
}

// FromRawEnv is FromRaw for an environment.
func FromRawEnv(env map[string]string, raw [][]byte) map[string]string {
	if len(raw) == 0 {
		return env
	}
	env = make(map[string]string, len(raw))
	for _, b := range raw {
		name, value, _ := strings.Cut(string(b), "=")
		env[name] = value
	}
	return env
}

// Text returns s with U+FFFD in place of what is not UTF-8.
func Text(s string) string { return strings.ToValidUTF8(s, "\ufffd") }

// Texts is Text for a list.
func Texts(list []string) []string {
	if RawTexts(list) == nil {
		return list
	}
	list = slices.Clone(list)
	for i, s := range list {
		list[i] = Text(s)
	}
	return list
}

// TextEnv is Text for an environment. Of two names with the same text one is left.
func TextEnv(env map[string]string) map[string]string {
	if RawEnv(env) == nil {
		return env
	}
	texts := make(map[string]string, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		texts[Text(name)] = Text(env[name])
	}
	return texts
}

// specText is a Spec without the methods that make JSON of it.
type specText Spec

// specJSON is a Spec as JSON.
type specJSON struct {
	specText
	Raw *specRaw `json:"raw,omitempty"`
}

// specRaw has what of a Spec is not UTF-8.
type specRaw struct {
	Command   []byte   `json:"command,omitempty"`
	Args      [][]byte `json:"args,omitempty"`
	WorkDir   []byte   `json:"workdir,omitempty"`
	Env       [][]byte `json:"env,omitempty"` // NAME=VALUE
	SecretEnv [][]byte `json:"secret_env,omitempty"`
	Uploads   [][]byte `json:"uploads,omitempty"`
}

// MarshalJSON implements json.Marshaler.
func (s Spec) MarshalJSON() ([]byte, error) {
	raw := specRaw{
		Command: RawText(s.Command), Args: RawTexts(s.Args), WorkDir: RawText(s.WorkDir),
		Env: RawEnv(s.Env), SecretEnv: RawEnv(s.SecretEnv), Uploads: RawTexts(s.Uploads),
	}
	v := specJSON{specText: specText(s)}
	if raw.Command != nil || raw.Args != nil || raw.WorkDir != nil || raw.Env != nil || raw.SecretEnv != nil || raw.Uploads != nil {
		v.Raw = &raw
		v.Command, v.WorkDir = Text(s.Command), Text(s.WorkDir)
		v.Args, v.Uploads = Texts(s.Args), Texts(s.Uploads)
		v.Env, v.SecretEnv = TextEnv(s.Env), TextEnv(s.SecretEnv)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // the caller's encoder does so if it is to be
	err := e.Encode(v)
	return b.Bytes(), err
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *Spec) UnmarshalJSON(data []byte) error {
	v := specJSON{specText: specText(*s)}
	if err := json.Unmarshal(data, &v); err != nil {
		return err
	}
	*s = Spec(v.specText)
	if raw := v.Raw; raw != nil {
		s.Command, s.WorkDir = FromRaw(s.Command, raw.Command), FromRaw(s.WorkDir, raw.WorkDir)
		s.Args, s.Uploads = FromRawTexts(s.Args, raw.Args), FromRawTexts(s.Uploads, raw.Uploads)
		s.Env, s.SecretEnv = FromRawEnv(s.Env, raw.Env), FromRawEnv(s.SecretEnv, raw.SecretEnv)
	}
	return nil
}
