package job

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strings"
	"text/template"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/jobview"
	"github.com/joblet/joblet/internal/cli/term"
)

// formatHelp describes --format, with the names of all fields.
var formatHelp = `

--format takes json, or a Go template over the data of --json. Its fields are
` + strings.Join(fieldNames(reflect.TypeFor[jobview.JSON]()), ", ") + `.
Those of Usage are ` + strings.Join(fieldNames(reflect.TypeFor[jobview.UsageJSON]()), ", ") + `.
Functions: json, join, short (of an id), upper, lower.`

// fieldNames returns the names of a struct's fields.
func fieldNames(t reflect.Type) []string {
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		names = append(names, f.Name)
	}
	return names
}

// formatFuncs are the functions that a --format template can call besides Go's own.
var formatFuncs = template.FuncMap{
	"json": func(v any) (string, error) {
		var b bytes.Buffer
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		err := e.Encode(v)
		return strings.TrimSuffix(b.String(), "\n"), err
	},
	"join": func(list any, separator string) (string, error) {
		v := reflect.ValueOf(list)
		if v.Kind() != reflect.Slice {
			return "", fmt.Errorf("%T is not a list", list)
		}
		all := make([]string, v.Len())
		for i := range all {
			all[i] = fmt.Sprint(v.Index(i).Interface())
		}
		return strings.Join(all, separator), nil
	},
	"short": func(id string) string { return joblet.ShortID(id) },
	"upper": func(v any) string { return strings.ToUpper(fmt.Sprint(v)) },
	"lower": func(v any) string { return strings.ToLower(fmt.Sprint(v)) },
}

// parseFormat reads a --format template; nil: none was given. A wrong field is an error
// here, as a wrong function is, and not only with the first job.
func parseFormat(text string) (*template.Template, error) {
	if text == "" {
		return nil, nil
	}
	t, err := template.New("--format").Funcs(formatFuncs).Parse(text)
	if err == nil {
		// Other errors are of this empty job: that its list has no first element.
		if bad := t.Execute(io.Discard, jobview.NewJSON(joblet.Job{})); bad != nil && strings.Contains(bad.Error(), "can't evaluate field") {
			err = bad
		}
	}
	if err != nil {
		return nil, templateError(err)
	}
	return t, nil
}

// badField is the part of a template's error that names a field which does not exist.
var badField = regexp.MustCompile(`can't evaluate field (\w+) in type`)

// templateError returns an error of a template without the words of its package.
func templateError(err error) error {
	if m := badField.FindStringSubmatch(err.Error()); m != nil {
		return joblet.Errorf(joblet.InvalidArgument, "--format: there is no field %s; see \"rnx job list --help\"", m[1])
	}
	return joblet.Errorf(joblet.InvalidArgument, "%s", strings.TrimPrefix(err.Error(), "template: "))
}

// writeFormat prints a job by a --format template, and a newline.
func writeFormat(a *app.App, t *template.Template, j joblet.Job) error {
	var b strings.Builder
	if err := t.Execute(&b, jobview.NewJSON(j)); err != nil {
		return templateError(err)
	}
	text := b.String()
	if term.Width(a.Out) > 0 { // a job's name must not move the cursor; the template may
		lines := strings.Split(text, "\n")
		for i, line := range lines {
			cells := strings.Split(line, "\t")
			for k := range cells {
				cells[k] = joblet.Printable(cells[k])
			}
			lines[i] = strings.Join(cells, "\t")
		}
		text = strings.Join(lines, "\n")
	}
	return a.Println(text)
}
