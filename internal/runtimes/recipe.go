package runtimes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/joblet/joblet"
)

// Bounds on a recipe. The largest that ships has 10 packages and 2 KiB.
const (
	maxRecipeSize = 64 << 10 // bytes
	maxPackages   = 1000
	maxListLen    = 200 // excludes, links, omitted packages, …
	maxTextLen    = 1000
)

// DefaultSuite is the Debian release that a recipe builds from when it does
// not say.
const DefaultSuite = "bookworm"

// Recipe says how a runtime is built. Its YAML form is strict: an unknown key
// is an error.
type Recipe struct {
	Name            string `yaml:"name"`
	Version         string `yaml:"version"`
	Description     string `yaml:"description"`
	Language        string `yaml:"language"`
	LanguageVersion string `yaml:"language_version"`

	Suite      string   `yaml:"suite"`      // Debian release, "bookworm" or later; empty: DefaultSuite
	Mirror     string   `yaml:"mirror"`     // serves Suite alone; empty: the host's own mirror of it, or Debian's with updates and security
	Components []string `yaml:"components"` // empty: main
	// Architectures are the Debian architectures that the recipe is good for;
	// empty: all. The build is always for the host's.
	Architectures []string `yaml:"architectures"`

	Packages []string `yaml:"packages"` // "name" or "name=version", without what they recommend
	// Omit names packages that others depend on and that this runtime can do
	// without: they count as installed and are not there.
	Omit []string `yaml:"omit"`
	// Exclude lists paths that are deleted after the installation. A '*' stands
	// for any characters, '/' included; a directory goes with all it holds.
	Exclude []string          `yaml:"exclude"`
	Links   map[string]string `yaml:"links"` // symbolic link → absolute target, both as the job sees them

	Environment map[string]string `yaml:"environment"` // of every job; the job's own variables win
	Test        []string          `yaml:"test"`        // a command that ends with status 0 in a job when the runtime is good

	source []byte
}

// Source returns the YAML text that the recipe was parsed from.
func (r Recipe) Source() []byte { return slices.Clone(r.source) }

var (
	packageRE   = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]*[a-z0-9+](=[A-Za-z0-9][A-Za-z0-9.+:~-]*)?$`)
	suiteRE     = regexp.MustCompile(`^[a-z][a-z0-9.-]*$`)
	componentRE = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	archRE      = regexp.MustCompile(`^[a-z][a-z0-9]*$`)
	versionRE   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~_-]*$`)
	mirrorRE    = regexp.MustCompile(`^https?://[A-Za-z0-9][A-Za-z0-9._~:/%+-]*$`)
	excludeRE   = regexp.MustCompile(`^/[A-Za-z0-9._+@~*?:,=/-]*$`)
)

// ParseRecipe reads and checks a recipe. Its errors are of kind
// InvalidArgument; for a key that does not belong they name it and its line.
func ParseRecipe(data []byte) (Recipe, error) {
	if len(data) > maxRecipeSize {
		return Recipe{}, joblet.Errorf(joblet.InvalidArgument, "recipe is %d bytes long: at most %d are possible", len(data), maxRecipeSize)
	}
	var r Recipe
	if err := decodeStrict(data, &r); err != nil {
		return Recipe{}, joblet.Errorf(joblet.InvalidArgument, "invalid recipe: %w", err)
	}
	if r.Suite == "" {
		r.Suite = DefaultSuite
	}
	if len(r.Components) == 0 {
		r.Components = []string{"main"}
	}
	if err := r.validate(); err != nil {
		return Recipe{}, joblet.Errorf(joblet.InvalidArgument, "invalid recipe: %w", err)
	}
	r.source = slices.Clone(data)
	return r, nil
}

var goType = regexp.MustCompile(`\bruntimes\.\w+`)

// decodeStrict decodes exactly one YAML document whose keys are all known.
func decodeStrict(data []byte, v any) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(v); err != nil {
		if errors.Is(err, io.EOF) {
			return errors.New("it is empty")
		}
		if te, ok := errors.AsType[*yaml.TypeError](err); ok {
			const shown = 5
			lines := make([]string, min(len(te.Errors), shown))
			for i := range lines {
				l := te.Errors[i]
				if before, _, ok := strings.Cut(l, " not found in type "); ok {
					l = strings.Replace(before, " field ", " unknown key ", 1)
				}
				l, _, _ = strings.Cut(l, " in type ")
				lines[i] = joblet.PrintableStart(goType.ReplaceAllString(l, "a mapping"), maxQuoted)
			}
			if more := len(te.Errors) - shown; more > 0 {
				lines = append(lines, fmt.Sprintf("and %d more errors", more))
			}
			return errors.New(strings.Join(lines, "; "))
		}
		return errors.New(joblet.PrintableStart(err.Error(), maxQuoted))
	}
	if err := dec.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return errors.New("it contains more than one document")
	}
	return nil
}

// maxQuoted is how many characters of an error that quotes its input are shown.
const maxQuoted = 200

func (r *Recipe) validate() error {
	if err := joblet.ValidName("name", r.Name); err != nil {
		return err
	}
	for _, t := range []struct{ key, value string }{
		{"description", r.Description}, {"language", r.Language}, {"language_version", r.LanguageVersion},
	} {
		if len(t.value) > maxTextLen {
			return fmt.Errorf("%s is %d bytes long: at most %d are possible", t.key, len(t.value), maxTextLen)
		}
		if i := strings.IndexFunc(t.value, func(c rune) bool { return c < ' ' && c != '\n' && c != '\t' || c == 0x7f }); i >= 0 {
			return fmt.Errorf("%s contains a control character at offset %d", t.key, i)
		}
	}
	if r.Version != "" && !matches(versionRE, r.Version) {
		return fmt.Errorf("version %.100q: only letters, digits, '.', '+', '~', '_' and '-' are allowed", r.Version)
	}
	if !matches(suiteRE, r.Suite) {
		return fmt.Errorf("suite %.100q: must be the name of a Debian release, such as %s", r.Suite, DefaultSuite)
	}
	if r.Mirror != "" {
		if u, err := url.Parse(r.Mirror); err != nil || u.Host == "" || !matches(mirrorRE, r.Mirror) {
			return fmt.Errorf("mirror %.100q: must be an http or https URL", r.Mirror)
		}
	}
	if len(r.Packages) == 0 {
		return errors.New("packages: must name at least one package")
	}
	for _, l := range []struct {
		key    string
		values []string
		max    int
		re     *regexp.Regexp
	}{
		{"components", r.Components, maxListLen, componentRE},
		{"architectures", r.Architectures, maxListLen, archRE},
		{"packages", r.Packages, maxPackages, packageRE},
		{"omit", r.Omit, maxListLen, packageRE},
		{"exclude", r.Exclude, maxListLen, excludeRE},
	} {
		if len(l.values) > l.max {
			return fmt.Errorf("%s: %d entries, at most %d are possible", l.key, len(l.values), l.max)
		}
		for i, v := range l.values {
			if !matches(l.re, v) {
				return fmt.Errorf("%s: entry %d, %.100q, is not valid", l.key, i+1, v)
			}
		}
	}
	for _, o := range r.Omit {
		if strings.Contains(o, "=") {
			return fmt.Errorf("omit: %q must not name a version", o)
		}
		if slices.ContainsFunc(r.Packages, func(p string) bool { name, _, _ := strings.Cut(p, "="); return name == o }) {
			return fmt.Errorf("%q is both in packages and in omit", o)
		}
	}
	for _, e := range r.Exclude {
		if err := joblet.ValidPath("exclude", e); err != nil {
			return err
		}
	}
	if len(r.Links) > maxListLen {
		return fmt.Errorf("links: %d entries, at most %d are possible", len(r.Links), maxListLen)
	}
	for link, target := range r.Links {
		if err := errors.Join(joblet.ValidPath("link", link), joblet.ValidPath("target of link "+link, target)); err != nil {
			return err
		}
		if path.Clean(link) == "/" {
			return errors.New("links: \"/\" cannot be a link")
		}
	}
	env := joblet.Spec{Command: "true", Env: r.Environment}
	if err := env.Validate(); err != nil {
		return err
	}
	if len(r.Test) > 0 {
		test := joblet.Spec{Command: r.Test[0], Args: r.Test[1:]}
		if err := test.Validate(); err != nil {
			return fmt.Errorf("test: %w", err)
		}
	}
	return nil
}

func matches(re *regexp.Regexp, s string) bool { return len(s) <= 256 && re.MatchString(s) }

// excludePattern returns one expression for all of patterns, which recipe
// validation has limited to harmless characters, '*' and '?'. It is matched
// against absolute paths.
func excludePattern(patterns []string) *regexp.Regexp {
	alternatives := make([]string, len(patterns))
	wild := strings.NewReplacer(`\*`, `.*`, `\?`, `.`)
	for i, p := range patterns {
		alternatives[i] = wild.Replace(regexp.QuoteMeta(p))
	}
	return regexp.MustCompile(`(?s)^(?:` + strings.Join(alternatives, "|") + `)$`)
}
