package flags

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"github.com/joblet/joblet"
)

// maxEnvFile bounds what is read of a file of variables: all that a job can
// take, and as much again in comments.
const maxEnvFile = 2 * joblet.MaxArgEnvSize

// Variables are what the flags --NAME and --NAME-file say of the environment.
type Variables struct {
	Flag  string // "--env"
	Files []string
	Given []string // NAME=VALUE, or NAME for the one here
}

// Read returns the variables: those of the files, in their order, then those
// given, the later ones in place of the earlier. lookup is os.LookupEnv.
func (v Variables) Read(lookup func(string) (string, bool)) (map[string]string, error) {
	if len(v.Files)+len(v.Given) == 0 {
		return nil, nil
	}
	env := make(map[string]string, len(v.Given))
	for _, name := range v.Files {
		if err := readEnvFile(env, name, lookup); err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "%s-file: %w", v.Flag, err)
		}
	}
	for _, g := range v.Given {
		name, value, ok := strings.Cut(g, "=")
		if err := joblet.ValidEnvName(name); err != nil {
			return nil, joblet.Errorf(joblet.InvalidArgument, "%s: %w", v.Flag, err)
		}
		if !ok {
			if value, ok = lookup(name); !ok {
				return nil, joblet.Errorf(joblet.InvalidArgument, "%s %s: the environment of rnx has no such variable", v.Flag, name)
			}
		}
		env[name] = value
	}
	return env, nil
}

func readEnvFile(env map[string]string, name string, lookup func(string) (string, bool)) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err != nil {
		return err
	}
	if len(text) > maxEnvFile {
		return fmt.Errorf("%s is longer than %s", name, joblet.ReadableSize(maxEnvFile))
	}
	return parseEnvFile(env, name, text, lookup)
}

// parseEnvFile reads lines as docker-run(1) does: NAME=VALUE with the value as
// it stands, quotes and blanks too; NAME for the variable here; empty lines and
// comments behind "#". Its errors show nothing of a line but plain names: it may be
// a secret.
func parseEnvFile(env map[string]string, file string, text []byte, lookup func(string) (string, bool)) error {
	number := 0
	for line := range bytes.Lines(bytes.TrimPrefix(text, []byte("\ufeff"))) {
		number++
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		line = bytes.TrimLeft(line, " \t")
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		name, value, err := parseEnvLine(string(line), lookup)
		if err != nil {
			return fmt.Errorf("%s:%d: %w", file, number, err)
		}
		env[name] = value
	}
	return nil
}

func parseEnvLine(line string, lookup func(string) (string, bool)) (name, value string, err error) {
	name, value, ok := strings.Cut(line, "=")
	shown := "the line"
	if plainName(name) {
		shown = name
	}
	switch {
	case name == "":
		return "", "", errors.New("not NAME=VALUE: the name is missing")
	case ok && strings.HasPrefix(name, "export "):
		return "", "", errors.New("not NAME=VALUE: leave out export")
	case ok && strings.TrimRight(name, " \t") != name:
		return "", "", errors.New("not NAME=VALUE: leave out the blanks before =")
	case strings.ContainsRune(line, 0):
		return "", "", fmt.Errorf("%s holds a NUL byte", shown)
	case joblet.ValidEnvName(name) != nil: // one that is Joblet's own
		return "", "", joblet.ValidEnvName(name)
	case len(line) > joblet.MaxStringLen:
		return "", "", fmt.Errorf("%s is %d bytes long: at most %d are possible", shown, len(line), joblet.MaxStringLen)
	case !ok:
		value, ok = lookup(name)
		switch {
		case !ok && shown == name:
			return "", "", fmt.Errorf("the environment of rnx has no variable %s", name)
		case !ok:
			return "", "", errors.New("not NAME=VALUE, and the environment of rnx has no such variable")
		}
	}
	return name, value, nil
}

// plainName reports whether a name is one that programs usually have.
func plainName(name string) bool {
	for i, r := range name {
		if r != '_' && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return name != ""
}

// AddSecretFlags adds --secret-env and --secret-env-file.
func (v *Variables) AddSecretFlags(f *pflag.FlagSet) {
	f.StringArrayVarP(&v.Given, "secret-env", "s", nil, "set secret variable `NAME=VALUE`, or pass on NAME from here; never stored in clear or shown (repeatable)")
	f.StringArrayVar(&v.Files, "secret-env-file", nil, "read secret variables from `FILE`; --secret-env takes precedence (repeatable)")
}
