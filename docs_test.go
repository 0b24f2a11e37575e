package joblet_test

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// Documents that do not meet the rules of TestDocuments yet. Remove an entry when its
// document does.
var pendingDocuments = []string{}

// generatedDocuments are below these directories; only their links are checked.
var generatedDocuments = []string{"docs/cli/"}

const documentWidth = 100 // columns of a line outside of code and tables

// bannedPhrases are literal translations and vague subjects, in lower case.
var bannedPhrases = []string{
	"for want of", "whoever", "whomever", "somebody", "its time was up", "goes before", "is no size", "is no number",
	"may be given again", "again and again", "what it takes", "what they take", "what was made", "waits for its turn",
	"is no business of", "are no business of", "tells of", "tell of", "nobody knows", "thrown away", "as good as", "a process more",
	"shut in", "counts at once", "hold at once", "breaks off", "cuts off whom", "by turns", "in the house",
}

// spellings are words of one English and the word that the documents use. The code is
// American; "licence" is the noun, as in the README.
var spellings = map[string]string{
	"analyse": "analyze", "artefact": "artifact", "authorise": "authorize", "behaviour": "behavior", "cancelled": "canceled",
	"cancelling": "canceling", "catalogue": "catalog", "centre": "center", "colour": "color", "colours": "colors", "customise": "customize",
	"defence": "defense", "favour": "favor", "favourite": "favorite", "fulfil": "fulfill", "grey": "gray", "honour": "honor",
	"honours": "honors", "initialise": "initialize", "labelled": "labeled", "license": "licence", "licenses": "licences",
	"minimise": "minimize", "misspelt": "misspelled", "neighbour": "neighbor", "normalise": "normalize", "optimise": "optimize",
	"organisation": "organization", "organisational": "organizational", "prioritise": "prioritize", "programme": "program",
	"recognise": "recognize", "recognises": "recognizes", "serialise": "serialize", "signalled": "signaled", "signalling": "signaling",
	"synchronise": "synchronize", "unauthorised": "unauthorized", "whilst": "while",
}

// document is a Markdown file.
type document struct {
	lines   []string
	prose   []prose
	tables  []prose
	anchors map[string]bool
	wrong   []string // "LINE: what"
}

// prose is a paragraph, list item, heading or table row without its code.
type prose struct {
	line int
	text string
}

var (
	inlineCode = regexp.MustCompile("`[^`]*`")
	listItem   = regexp.MustCompile(`^\s*([-*]|\d+\.)\s`)
	inlineLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	word       = regexp.MustCompile(`\pL[\pL'’]*`)
)

// anchorOf returns the anchor that GitHub gives to a heading.
func anchorOf(heading string) string {
	heading = strings.TrimSpace(strings.TrimLeft(heading, "#"))
	heading = regexp.MustCompile(`\]\([^)]*\)`).ReplaceAllString(heading, "")
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, heading)
}

// parseDocument splits a document and checks its lines.
func parseDocument(text string) *document {
	d := &document{anchors: map[string]bool{}}
	var paragraph []string
	start := 0
	flush := func() {
		if paragraph != nil {
			d.prose = append(d.prose, prose{start, strings.Join(paragraph, " ")})
			paragraph = nil
		}
	}
	fenced, inList, blank, code := false, false, true, false
	d.lines = strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range d.lines {
		n := i + 1
		if strings.TrimRight(line, " \t\r") != line {
			d.wrong = append(d.wrong, fmt.Sprintf("%d: a blank at the end of the line", n))
		}
		indented := strings.HasPrefix(line, "    ") && !listItem.MatchString(line) && (blank || code)
		switch {
		case strings.HasPrefix(strings.TrimLeft(line, " "), "```"):
			flush()
			fenced = !fenced
		case fenced:
		case line == "":
			flush()
			blank = true
			continue
		case indented && !strings.HasPrefix(line, "     ") && inList:
			d.wrong = append(d.wrong, fmt.Sprintf("%d: an indented block below a list is part of the list, not code", n))
			code = true
			blank = false
			continue
		case indented:
			flush()
			code, blank = true, false
			continue
		case strings.HasPrefix(line, "|"):
			flush()
			inList = false
			d.tables = append(d.tables, prose{n, line})
		default:
			if w := utf8.RuneCountInString(line); w > documentWidth {
				d.wrong = append(d.wrong, fmt.Sprintf("%d: %d columns, at most %d are allowed", n, w, documentWidth))
			}
			heading := strings.HasPrefix(line, "#")
			switch {
			case heading:
				flush()
				inList = false
				anchor := anchorOf(line)
				for k := 1; d.anchors[anchor]; k++ {
					anchor = fmt.Sprintf("%s-%d", anchorOf(line), k)
				}
				d.anchors[anchor] = true
			case listItem.MatchString(line):
				flush()
				inList = true
			case !strings.HasPrefix(line, " ") && paragraph == nil:
				inList = false
			}
			if paragraph == nil {
				start = n
			}
			paragraph = append(paragraph, strings.TrimSpace(line))
			if heading {
				flush()
			}
		}
		blank, code = false, false
	}
	flush()
	return d
}

// checkWords checks the words of a text without code.
func (d *document) checkWords(p prose) {
	bad := func(format string, args ...any) {
		d.wrong = append(d.wrong, fmt.Sprintf("%d: "+format, append([]any{p.line}, args...)...))
	}
	text := inlineLink.ReplaceAllString(inlineCode.ReplaceAllString(p.text, "CODE"), "]")
	lower := strings.ToLower(text)
	for _, phrase := range bannedPhrases {
		if strings.Contains(lower, phrase) {
			bad("%q", phrase)
		}
	}
	previous, end := "", 0
	for _, at := range word.FindAllStringIndex(lower, -1) {
		w := lower[at[0]:at[1]]
		if w == previous && w != "code" && strings.TrimSpace(lower[end:at[0]]) == "" {
			bad("repeated word %q", w)
		}
		if right, ok := spellings[w]; ok {
			bad("%q is %q here", w, right)
		}
		previous, end = w, at[1]
	}
}

// checkLinks checks that relative links lead to files, and their anchors to headings.
func (d *document) checkLinks(name string, read func(name string) *document) {
	for _, p := range slices.Concat(d.prose, d.tables) {
		for _, m := range inlineLink.FindAllStringSubmatch(inlineCode.ReplaceAllString(p.text, ""), -1) {
			target, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			file := name
			if target != "" {
				file = path.Join(path.Dir(name), target)
			}
			if _, err := os.Stat(file); err != nil && target != "" {
				d.wrong = append(d.wrong, fmt.Sprintf("%d: the link %s leads nowhere", p.line, m[1]))
			} else if anchor != "" && strings.HasSuffix(file, ".md") && !slices.Contains(pendingDocuments, file) && !read(file).anchors[anchor] {
				d.wrong = append(d.wrong, fmt.Sprintf("%d: %s has no heading for #%s", p.line, file, anchor))
			}
		}
	}
}

// documents returns the names of all documents.
func documents(t *testing.T) []string {
	t.Helper()
	var names []string
	err := filepath.WalkDir(".", func(p string, e fs.DirEntry, err error) error {
		switch name := e.Name(); {
		case err != nil:
			return err
		case e.IsDir() && slices.Contains([]string{".git", "bin", "node_modules", "testdata"}, name):
			return fs.SkipDir
		case !e.IsDir() && strings.HasSuffix(name, ".md") && p != "CHANGELOG.md": // made of changelog/
			names = append(names, filepath.ToSlash(p))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"README.md", "CONTRIBUTING.md", "docs/JOBS.md", "test/README.md", ".github/PULL_REQUEST_TEMPLATE.md"} {
		if !slices.Contains(names, want) {
			t.Fatalf("%s is not among the documents: %q", want, names)
		}
	}
	return names
}

// TestDocuments checks the form of all documents: width, words, links.
func TestDocuments(t *testing.T) {
	t.Parallel()
	parsed := map[string]*document{}
	read := func(name string) *document {
		if parsed[name] == nil {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			parsed[name] = parseDocument(string(text))
		}
		return parsed[name]
	}
	for _, name := range documents(t) {
		d := read(name)
		if strings.HasPrefix(name, "changelog/") { // paragraphs are lines there
			d.wrong = nil
		}
		generated := slices.ContainsFunc(generatedDocuments, func(dir string) bool { return strings.HasPrefix(name, dir) })
		if generated {
			d.wrong = nil
		} else {
			for _, p := range slices.Concat(d.prose, d.tables) {
				d.checkWords(p)
			}
		}
		d.checkLinks(name, read)
		if slices.Contains(pendingDocuments, name) {
			if len(d.wrong) > 0 {
				t.Logf("%s: %d findings, among them %s", name, len(d.wrong), d.wrong[0])
			} else {
				t.Logf("%s: no findings; remove it from pendingDocuments", name)
			}
			continue
		}
		for _, w := range d.wrong {
			t.Errorf("%s:%s", name, w)
		}
	}
}

// TestDocumentRules shows that each rule finds what it is for, and nothing in code.
func TestDocumentRules(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a long ", 15) + "line"
	for text, want := range map[string]string{
		long:                                  "columns",
		"    " + long:                         "",
		"| " + long + " |":                    "",
		"```\n" + long + "\nthe the\n```":     "",
		"- item\n  " + long:                   "columns",
		"- item\n\n    code":                  "part of the list",
		"- item\n\nText.\n\n    code":         "",
		"the end ":                            "blank",
		"This is the\nthe end.":               `repeated word "the"`,
		"- of `a` `b`\n- of":                  "",
		"the end. The beginning":              "",
		"for want\nof room":                   "for want of",
		"| the behaviour |":                   `"behaviour" is "behavior"`,
		"`behaviour`":                         "",
		"[text](LICENSE)":                     "",
		"[text](nowhere.md)":                  "leads nowhere",
		"# A `b-c` D\n[text](#a-b-c-d)":       "",
		"# Twice\n# Twice\n[text](#twice-1)":  "",
		"# A heading\n[text](#another)":       "no heading",
		"[text](docs/VIEW.md#with-a-runtime)": "",
		"[text](docs/VIEW.md#no-such-head)":   "no heading",
		"[text](https://example.org/nowhere)": "",
	} {
		d := parseDocument(text)
		for _, p := range slices.Concat(d.prose, d.tables) {
			d.checkWords(p)
		}
		d.checkLinks("self.md", func(name string) *document {
			data, err := os.ReadFile(name)
			if err != nil {
				return d
			}
			return parseDocument(string(data))
		})
		found := strings.Join(d.wrong, "; ")
		if (want == "") != (found == "") || !strings.Contains(found, want) {
			t.Errorf("%q: found %q, want %q", text, found, want)
		}
	}
}
