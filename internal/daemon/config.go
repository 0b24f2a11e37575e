package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/help"
	"github.com/joblet/joblet/internal/spelling"
)

// The configuration file has a key for each flag of joblet serve, and the environment a
// variable: log-level, --log-level, JOBLET_LOG_LEVEL. A flag takes precedence over the
// environment, and the environment over the file.

// configPath is the default path of the file.
const configPath = "/etc/joblet/joblet-config.yml"

const maxConfigFile = 1 << 20

// notConfigured are flags that are about one start of the daemon.
var notConfigured = []string{"config", "ready-fd", "help"}

// origin says where a value comes from.
type origin string

const fromDefault, fromFlag origin = "default", "flag"

// origins are those of all values, by name.
type origins map[string]origin

const envPrefix = "JOBLET_"

// envName is the environment's name for a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// Environment variables, without their prefix, that do not belong to flags: the path of
// the file, and variables of jobs and tests.
var (
	configVariables = []string{"CONFIG", "CONFIG_PATH"}
	otherVariables  = []string{"JOB_ID", "ATTEMPT", "FAULT"}
)

const testVariables = "TEST_"

// unknownVariables are environment variables with our prefix that the daemon does not
// know, each with the nearest known one, or "". Other programs may read them.
func unknownVariables() iter.Seq2[string, string] {
	known := slices.Clone(configVariables)
	o := builtinOptions()
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.flags(f)
	f.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains(notConfigured, flag.Name) {
			known = append(known, strings.TrimPrefix(envName(flag.Name), envPrefix))
		}
	})
	return func(yield func(string, string) bool) {
		for _, variable := range slices.Sorted(slices.Values(os.Environ())) {
			name, _, _ := strings.Cut(variable, "=")
			wrong, ours := strings.CutPrefix(name, envPrefix)
			if !ours || strings.HasPrefix(wrong, testVariables) || slices.Contains(known, wrong) || slices.Contains(otherVariables, wrong) {
				continue
			}
			nearest := spelling.Nearest(wrong, slices.Values(known), max(3, len(wrong)/3))
			if nearest != "" {
				nearest = envPrefix + nearest
			}
			if !yield(name, nearest) {
				return
			}
		}
	}
}

// Load returns the options with what the environment and the file say. given are
// the names of those that the command line has set.
func (o Options) Load(given map[string]bool) (Options, origins, error) {
	o.Allow = slices.Clone(o.Allow)
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.flags(f)
	from := origins{}
	f.VisitAll(func(flag *pflag.Flag) {
		from[flag.Name] = fromDefault
		if given[flag.Name] {
			from[flag.Name] = fromFlag
		}
	})
	var bad configErrors
	f.VisitAll(func(flag *pflag.Flag) {
		value, ok := os.LookupEnv(envName(flag.Name))
		if !ok || value == "" || from[flag.Name] == fromFlag || slices.Contains(notConfigured, flag.Name) {
			return
		}
		from[flag.Name] = origin("environment " + envName(flag.Name))
		for _, v := range splitList(flag, value) {
			if err := flag.Value.Set(v); err != nil {
				bad = append(bad, fmt.Errorf("%s: %w", envName(flag.Name), help.ValueError(v, err)))
				return
			}
		}
	})
	path, must := o.Config, true
	if path == "" {
		path = cmp.Or(os.Getenv("JOBLET_CONFIG"), os.Getenv("JOBLET_CONFIG_PATH"))
	}
	if path == "" {
		path, must = configPath, false
	}
	text, err := readConfigFile(path)
	switch {
	case err == nil:
		bad = append(bad, applyConfig(f, path, text, from)...)
	case must || !errors.Is(err, fs.ErrNotExist):
		bad = append(bad, err)
	}
	if len(bad) > 0 {
		return o, from, bad
	}
	return o, from, nil
}

// configErrors are all errors of a configuration, in the order of the file. As an error
// they are the first, and the number of the others.
type configErrors []error

func (e configErrors) Error() string {
	if len(e) == 1 {
		return e[0].Error()
	}
	return fmt.Sprintf("%v; joblet config check lists %d more errors", e[0], len(e)-1)
}

func (e configErrors) Unwrap() []error { return e }

// check returns all errors of a configuration that Load has read: its own, and those of
// options that cannot be used, with the line of the file or the variable that sets them.
func (o Options) check(from origins, loaded error) error {
	var all configErrors
	if loaded != nil && !errors.As(loaded, &all) {
		return loaded
	}
	for _, p := range o.problems() {
		if from[p.option] == fromDefault || from[p.option] == fromFlag {
			all = append(all, p.err)
			continue
		}
		at := strings.TrimPrefix(string(from[p.option]), "environment ")
		all = append(all, fmt.Errorf("%s: %s", at, strings.TrimPrefix(p.err.Error(), "--")))
	}
	slices.SortStableFunc(all, func(a, b error) int { return cmp.Compare(lineOf(a), lineOf(b)) })
	if len(all) > 0 {
		return all
	}
	return nil
}

// lineOf returns the line of a file at the beginning of an error, 0 if there is none.
func lineOf(err error) int {
	m := lineRE.FindStringSubmatch(err.Error())
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

var lineRE = regexp.MustCompile(`^/?[^:]*:(\d+): `)

// splitList returns the values in a variable of the environment: of what can be
// given again they are divided by semicolons.
func splitList(flag *pflag.Flag, value string) []string {
	if !isList(flag) {
		return []string{value}
	}
	var all []string
	for v := range strings.SplitSeq(value, ";") {
		if v = strings.TrimSpace(v); v != "" {
			all = append(all, v)
		}
	}
	return all
}

func isList(flag *pflag.Flag) bool {
	_, limits := flag.Value.(limitsFlag)
	_, slice := flag.Value.(pflag.SliceValue)
	return limits || slice
}

// readConfigFile reads a file that only root can have written: it says what root's
// daemon does.
func readConfigFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	sys, _ := st.Sys().(*syscall.Stat_t)
	switch {
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("cannot read the configuration %s: it is not a regular file", path)
	case sys.Uid != 0 && int(sys.Uid) != os.Geteuid() || st.Mode().Perm()&0o022 != 0:
		return nil, fmt.Errorf("cannot use the configuration %s: other users may write it (owner %d, mode %v): run chown root %[1]s and chmod go-w %[1]s", path, sys.Uid, st.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxConfigFile+1))
	if err == nil && len(text) > maxConfigFile {
		err = fmt.Errorf("longer than %d bytes", maxConfigFile)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration %s: %w", path, err)
	}
	return text, nil
}

// applyConfig sets the options of the file that flags and the environment have not set.
// It returns all errors of the file.
func applyConfig(f *pflag.FlagSet, path string, text []byte, from origins) configErrors {
	top, err := configKeys(path, text)
	if err != nil {
		return configErrors{err}
	}
	if top == nil {
		return nil
	}
	var bad configErrors
	seen := map[string]int{}
	for i := 0; i+1 < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		at := fmt.Sprintf("%s:%d", path, key.Line)
		flag := f.Lookup(key.Value)
		if flag == nil && isPublicSection(key.Value) {
			return configErrors{fmt.Errorf("%s: unknown key %q: this looks like a configuration of the public daemon; convert it with joblet config import", at, key.Value)}
		}
		if flag == nil || slices.Contains(notConfigured, key.Value) {
			bad = append(bad, fmt.Errorf("%s: unknown key %q%s", at, key.Value, nearestKey(f, key.Value)))
			continue
		}
		if first, again := seen[key.Value]; again {
			bad = append(bad, fmt.Errorf("%s: duplicate key %q, first in line %d", at, key.Value, first))
			continue
		}
		seen[key.Value] = key.Line
		if err := applyKey(flag, value, origin(at), from); err != nil {
			bad = append(bad, fmt.Errorf("%s: %s: %w", at, key.Value, err))
		}
	}
	return bad
}

// configKeys returns the mapping in a configuration file, nil if it is empty.
func configKeys(path string, text []byte) (*yaml.Node, error) {
	d := yaml.NewDecoder(strings.NewReader(string(text)))
	var doc yaml.Node
	if err := d.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil // nothing but comments
	} else if err != nil {
		return nil, fmt.Errorf("cannot parse the configuration %s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read the configuration %s: it contains more than one document", path)
	}
	top := doc.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s:%d: must have lines of KEY: VALUE", path, top.Line)
	}
	return top, nil
}

// applyKey sets a flag to the value of its key, unless a flag or the environment takes
// precedence.
func applyKey(flag *pflag.Flag, value *yaml.Node, at origin, from origins) error {
	values, err := configValues(flag, value)
	if err != nil || from[flag.Name] != fromDefault {
		return err
	}
	from[flag.Name] = at
	if list, ok := flag.Value.(pflag.SliceValue); ok { // an empty list, too, replaces the default
		return list.Replace(values)
	}
	for _, v := range values {
		if err := flag.Value.Set(v); err != nil {
			return help.ValueError(v, err)
		}
	}
	return nil
}

// configValues returns a key's value as its flag takes it.
func configValues(flag *pflag.Flag, n *yaml.Node) ([]string, error) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	switch _, limits := flag.Value.(limitsFlag); {
	case n.Kind == yaml.ScalarNode && n.Tag == "!!null":
		if isList(flag) {
			return nil, nil
		}
		return nil, errors.New("has no value")
	case n.Kind == yaml.ScalarNode && !limits:
		return []string{n.Value}, nil
	case n.Kind == yaml.SequenceNode && isList(flag) && !limits:
		var all []string
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return nil, errors.New("must be a list of strings")
			}
			all = append(all, item.Value)
		}
		return all, nil
	case n.Kind == yaml.MappingNode && limits:
		var all []string
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			name := n.Content[i]
			if first, again := seen[name.Value]; again {
				return nil, fmt.Errorf("duplicate key %.40q in line %d, first in line %d", name.Value, name.Line, first)
			}
			seen[name.Value] = name.Line
			if n.Content[i+1].Kind != yaml.ScalarNode {
				return nil, fmt.Errorf("%s: must be a single value", name.Value)
			}
			all = append(all, n.Content[i].Value+"="+n.Content[i+1].Value)
		}
		return all, nil
	case limits:
		return nil, errors.New("must have lines of LIMIT: VALUE")
	}
	return nil, errors.New("must be a single value")
}

// nearestKey returns the key that was perhaps meant.
func nearestKey(f *pflag.FlagSet, wrong string) string {
	wrong = strings.ToLower(strings.ReplaceAll(wrong, "_", "-"))
	var keys []string
	f.VisitAll(func(flag *pflag.Flag) {
		if !slices.Contains(notConfigured, flag.Name) {
			keys = append(keys, flag.Name)
		}
	})
	return cmp.Or(spelling.Meant(wrong, slices.Values(keys)), `; see "joblet config default"`)
}

// given returns the flags that the command line has set.
func given(f *pflag.FlagSet) map[string]bool {
	set := map[string]bool{}
	f.Visit(func(flag *pflag.Flag) { set[flag.Name] = true })
	return set
}

// NewConfigCommand returns joblet config.
func NewConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show, check and import the daemon's configuration",
		Long: `Show, check and import the daemon's configuration: the file ` + configPath + `,
or the one that --config or JOBLET_CONFIG names.

Each key is a flag of "joblet serve" as well, and a variable of the environment:
log-level, --log-level, JOBLET_LOG_LEVEL. A flag takes precedence over the environment, and
the environment over the file. On SIGHUP the daemon reads the file again.`,
		Args: cobra.ArbitraryArgs, // refused by help.Group
		RunE: help.Group,
	}
	cmd.AddCommand(&cobra.Command{
		Use:     "default",
		Short:   "Print a configuration file with all defaults and comments",
		Example: "  joblet config default > " + configPath,
		Args:    help.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return writeConfig(cmd.OutOrStdout(), builtinOptions(), nil)
		},
	}, &cobra.Command{
		Use:   "check [FILE]",
		Short: "Validate a configuration file",
		Args:  help.AtMostOneArg,
		RunE: func(cmd *cobra.Command, args []string) error {
			opt := DefaultOptions()
			if len(args) == 1 {
				opt.Config = args[0]
			}
			for name, nearest := range unknownVariables() {
				text := fmt.Sprintf("warning: unknown environment variable %.100s ignored", name)
				if nearest != "" {
					text += fmt.Sprintf("; did you mean %s?", nearest)
				}
				fmt.Fprintln(cmd.ErrOrStderr(), text)
			}
			opt, from, err := opt.Load(nil)
			err = opt.check(from, err)
			if all, ok := errors.AsType[configErrors](err); ok && len(all) > 1 {
				for _, err := range all {
					fmt.Fprintln(cmd.ErrOrStderr(), joblet.Shorten(err.Error()))
				}
				return fmt.Errorf("cannot use the configuration: it has %d errors", len(all))
			}
			if err == nil {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "ok")
			}
			return err
		},
	}, newConfigShowCommand(), newConfigImportCommand())
	return cmd
}

func newConfigShowCommand() *cobra.Command {
	opt := DefaultOptions()
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Print the effective configuration and the source of each value",
		Long:  "Print the configuration that a daemon started now would have, and where each\nvalue comes from. Takes the flags of joblet serve.",
		Args:  help.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			opt, from, err := opt.Load(given(cmd.Flags()))
			if err == nil {
				err = opt.validate()
			}
			if err == nil {
				err = writeConfig(cmd.OutOrStdout(), opt, from)
			}
			return err
		},
	}
	opt.flags(cmd.Flags())
	return cmd
}

// writeConfig writes options as a configuration file: with their origins, or
// without any as comments beside what they mean.
func writeConfig(w io.Writer, opt Options, from origins) error {
	f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	opt.flags(f)
	f.SortFlags = false
	var b strings.Builder
	if from == nil {
		fmt.Fprintf(&b, "# Configuration of joblet serve: %s. Commented lines show defaults.\n# On SIGHUP the daemon reads the file again. These keys take effect at once, others after a restart:\n# %s\n", configPath, wrap(strings.Join(reloadableNames(), ", "), 95))
	}
	f.VisitAll(func(flag *pflag.Flag) {
		if slices.Contains(notConfigured, flag.Name) {
			return
		}
		text := flag.Name + ":" + configText(flag)
		if from != nil {
			head, rest, more := strings.Cut(text, "\n")
			fmt.Fprintf(&b, "%-40s # %s\n", head, from[flag.Name])
			if more {
				b.WriteString(rest + "\n")
			}
			return
		}
		usage := strings.ReplaceAll(flag.Usage, "`", "")
		fmt.Fprintf(&b, "\n# %s\n#%s\n", wrap(usage, 95), strings.ReplaceAll(text, "\n", "\n#"))
	})
	_, err := io.WriteString(w, b.String())
	return err
}

// configText returns a flag's value as the file has it, behind the colon.
func configText(flag *pflag.Flag) string {
	switch v := flag.Value.(type) {
	case limitsFlag:
		var lines []string
		v.limits.Each(func(name, value string) { lines = append(lines, fmt.Sprintf("\n  %s: %s", name, quote(value))) })
		if len(lines) == 0 {
			return " {}"
		}
		return strings.Join(lines, "")
	case pflag.SliceValue:
		all := v.GetSlice()
		if len(all) == 0 {
			return " []"
		}
		var lines []string
		for _, item := range all {
			lines = append(lines, "\n  - "+quote(item))
		}
		return strings.Join(lines, "")
	}
	if flag.Value.Type() == "string" {
		return " " + quote(flag.Value.String())
	}
	return " " + flag.Value.String()
}

// quote returns a scalar of YAML that is read as this text.
func quote(s string) string {
	text, err := yaml.Marshal(s)
	if err != nil {
		panic(err) // a text always can be
	}
	return strings.TrimSuffix(string(text), "\n")
}

// wrap breaks a line into comments.
func wrap(s string, width int) string {
	var b strings.Builder
	column := 0
	for i, word := range strings.Fields(s) {
		switch {
		case i == 0:
		case column+len(word) > width:
			b.WriteString("\n# ")
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += len(word)
	}
	return b.String()
}

// changed returns the names of the options in which two configurations differ.
func changed(a, b Options) []string {
	values := func(o Options) map[string]string {
		f := pflag.NewFlagSet("serve", pflag.ContinueOnError)
		o.flags(f)
		all := map[string]string{}
		f.VisitAll(func(flag *pflag.Flag) { all[flag.Name] = configText(flag) })
		return all
	}
	old, now := values(a), values(b)
	var names []string
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if old[name] != now[name] {
			names = append(names, name)
		}
	}
	return names
}
