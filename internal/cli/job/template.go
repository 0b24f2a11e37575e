package job

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"strings"
	"text/template"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/cli/app"
	"github.com/joblet/joblet/internal/cli/jobview"
	"github.com/joblet/joblet/internal/cli/term"
)

const formatHelp = `

--format takes a Go template over the data of --json, with Go's spelling of the
fields: UUID Name Status Command Args Runtime Labels Owner Created Started Ended
Scheduled ExitCode Signal Reason Parent Attempt Past and so on. Functions: json,
join, short (of an id), upper, lower.`

// formatFuncs are what a --format template can call beside Go's own.
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

// parseFormat reads a --format template; nil when none was given. Like that of
// a wrong function, the error of a wrong field comes now and not with the first
// job.
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
		return nil, joblet.Errorf(joblet.InvalidArgument, "%s", strings.TrimPrefix(err.Error(), "template: "))
	}
	return t, nil
}

// writeFormat prints a job as a --format template wants it, on a line.
func writeFormat(a *app.App, t *template.Template, j joblet.Job) error {
	var b strings.Builder
	if err := t.Execute(&b, jobview.NewJSON(j)); err != nil {
		return joblet.Errorf(joblet.InvalidArgument, "%s", strings.TrimPrefix(err.Error(), "template: "))
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
