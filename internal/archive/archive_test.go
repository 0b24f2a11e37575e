package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/testenv"
)

var generous = Limits{Bytes: 1 << 20, Entries: 10_000}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// tarOf makes an archive as anybody might.
func tarOf(t testing.TB, headers ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Uname)) // the content is there
		}
		content := h.Uname
		h.Uname = ""
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func dirOf(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750} }

func fileOf(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o640, Uname: content}
}

func hardOf(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o640}
}

func linkOf(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

// withSlash makes "a/" of the first name "ab", which tar.Writer refuses.
func withSlash(archive []byte) []byte {
	archive[1] = '/'
	sum := 8 * int(' ')
	for i, b := range archive[:512] {
		if i < 148 || i >= 156 {
			sum += int(b)
		}
	}
	copy(archive[148:], fmt.Sprintf("%06o\x00 ", sum))
	return archive
}

// list describes a directory: name → mode, and content or target.
func list(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		text := fi.Mode().String()
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text += " " + string(b)
		case fi.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			text = "-> " + target
		}
		all[strings.TrimPrefix(p, dir+"/")] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// names lists an archive.
func names(t testing.TB, archive []byte) []string {
	t.Helper()
	var all []string
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h.Name)
	}
}

func diff(t testing.TB, got, want map[string]string) {
	t.Helper()
	for name, text := range want {
		if got[name] != text {
			t.Errorf("%.100q: got %.100q, want %.100q", name, got[name], text)
		}
	}
	for name, text := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%.100q: got %.100q, want nothing", name, text)
		}
	}
}

func write(t testing.TB, mode fs.FileMode, content string, elem ...string) {
	t.Helper()
	p := filepath.Join(elem...)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(p, mode); err != nil {
		t.Fatal(err)
	}
}

func makeTree(t testing.TB, dir string) (entries int, size int64) {
	t.Helper()
	long := strings.Repeat("long/", 60) + strings.Repeat("n", 255)
	for name, mode := range map[string]fs.FileMode{
		"run.sh": 0o755, "data/a b.csv": 0o644, "data/private": 0o600, "data/readonly": 0o444, "data/suid": 0o755 | fs.ModeSetuid,
		"ünïcödé/Größe": 0o644, "bytes/\xff\xfe": 0o644, "new\nline": 0o644, `back\slash`: 0o644, " spaces ": 0o644,
		"-dash": 0o644, long: 0o644, "empty file": 0o644,
	} {
		content := "content of " + name
		if name == "empty file" {
			content = ""
		}
		write(t, mode, content, dir, name)
		size += int64(len(content))
	}
	for i := range 1500 { // more than one batch
		write(t, 0o644, "x", dir, "many", fmt.Sprint(i))
		size++
	}
	for name, target := range map[string]string{
		"link": "run.sh", "data/up": "../run.sh", "data/top": "..", "dangling": "nowhere", "dirlink": "data/", "self": ".",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "empty/dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "data"), 0o711); err != nil {
		t.Fatal(err)
	}
	return 13 + 1500 + 6 + 2 + 4 + 60, size // files, links, directories
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	entries, size := makeTree(t, dir)
	want := list(t, dir)
	want["data/suid"] = "-rwxr-xr-x content of data/suid"
	if len(want) != entries {
		t.Fatalf("the tree has %d entries, want %d", len(want), entries)
	}
	pack := map[string]func(io.Writer) (Stats, error){
		"PackTree": func(w io.Writer) (Stats, error) { return PackTree(w, openRoot(t, dir), nil, generous) },
		"PackPaths": func(w io.Writer) (Stats, error) {
			return PackPaths(w, []Source{{Path: dir}}, Filter{}, generous)
		},
	}
	for name, pack := range pack {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var packed, checked, selected bytes.Buffer
			for i, step := range []func() (Stats, error){
				func() (Stats, error) { return pack(&packed) },
				func() (Stats, error) { return Check(&checked, iotest.OneByteReader(&packed), generous) },
				func() (Stats, error) { return Select(&selected, bytes.NewReader(checked.Bytes()), nil) },
				func() (Stats, error) {
					out := t.TempDir()
					write(t, 0o400, "old", out, "run.sh")
					if err := os.Symlink("run.sh", filepath.Join(out, "empty file")); err != nil {
						t.Fatal(err)
					}
					stats, err := Unpack(openRoot(t, out), &selected, generous)
					diff(t, list(t, out), want)
					return stats, err
				},
			} {
				stats, err := step()
				if err != nil {
					t.Fatal(i, err)
				}
				if stats.Bytes != size || stats.Entries != entries || stats.Skipped != 0 || len(stats.Top) != 16 || !slices.IsSorted(stats.Top) {
					t.Errorf("step %d: got %+v, want %d bytes, %d entries", i, stats, size, entries)
				}
			}
		})
	}
}

// TestTimes carries times of modification through all steps.
func TestTimes(t *testing.T) {
	t.Parallel()
	testenv.RequireRoot(t)
	dir := t.TempDir()
	want := map[string]time.Time{
		"f":            time.Date(2021, 3, 4, 5, 6, 7, 123456789, time.UTC),
		"old":          time.Date(1960, 1, 1, 0, 0, 0, 5000, time.UTC),
		"epoch":        time.Unix(0, 1),
		"whole":        time.Date(2022, 3, 4, 5, 6, 7, 0, time.UTC),
		"d/e/f":        time.Date(2023, 3, 4, 5, 6, 7, 1, time.UTC),
		"closed/f":     time.Date(2023, 3, 4, 5, 6, 7, 2, time.UTC),
		"d/e":          time.Date(2020, 3, 4, 5, 6, 7, 3, time.UTC), // older than what is in it
		"d":            time.Date(2019, 3, 4, 5, 6, 7, 4, time.UTC),
		"closed":       time.Date(2018, 3, 4, 5, 6, 7, 5, time.UTC),
		"merged":       {},
		"merged/f":     time.Date(2018, 3, 4, 5, 6, 7, 6, time.UTC),
		"merged/fresh": time.Date(2018, 3, 4, 5, 6, 7, 7, time.UTC),
	}
	for name := range want {
		if b := path.Base(name); b != "d" && b != "e" && b != "closed" && b != "merged" {
			write(t, 0o644, name, dir, name)
		}
	}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(want))) {
		if err := os.Chtimes(filepath.Join(dir, name), time.Time{}, want[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(filepath.Join(dir, "epoch"), time.Time{}, time.Unix(0, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "closed"), 0o500); err != nil {
		t.Fatal(err)
	}
	deep, err := NewMatcher([]string{"d/e/f"})
	if err != nil {
		t.Fatal(err)
	}
	for name, pack := range map[string]func(io.Writer) (Stats, error){
		"all":  func(w io.Writer) (Stats, error) { return PackTree(w, openRoot(t, dir), nil, generous) },
		"deep": func(w io.Writer) (Stats, error) { return PackTree(w, openRoot(t, dir), deep.Match, generous) },
		"selected": func(w io.Writer) (Stats, error) {
			var all bytes.Buffer
			if _, err := PackTree(&all, openRoot(t, dir), nil, generous); err != nil {
				return Stats{}, err
			}
			return Select(w, bytes.NewReader(all.Bytes()), deep.Match)
		},
		"paths": func(w io.Writer) (Stats, error) { return PackPaths(w, []Source{{Path: dir}}, Filter{}, generous) },
	} {
		var packed, checked bytes.Buffer
		if _, err := pack(&packed); err != nil {
			t.Fatal(err)
		}
		if _, err := Check(&checked, &packed, generous); err != nil {
			t.Fatal(err)
		}
		out := t.TempDir()
		write(t, 0o644, "before", out, "merged/f")
		before := time.Now().Add(-time.Minute)
		if _, err := Unpack(openRoot(t, out), &checked, generous); err != nil {
			t.Fatal(err)
		}
		for file, want := range want {
			fi, err := os.Stat(filepath.Join(out, file))
			switch {
			case err != nil && name != "all" && name != "paths" && !strings.HasPrefix(file, "d"):
			case err != nil:
				t.Errorf("%s: %v", name, err)
			case file == "merged" && fi.ModTime().Before(before):
				t.Errorf("%s: the time of a directory that was there is %v", name, fi.ModTime())
			case !strings.HasPrefix(file, "merged") && !fi.ModTime().Equal(want):
				t.Errorf("%s: %s: got %v, want %v", name, file, fi.ModTime(), want)
			}
		}
	}
}

// TestOddTimes has times that no file can have, and none at all.
func TestOddTimes(t *testing.T) {
	t.Parallel()
	before := time.Now().Add(-time.Minute)
	for _, tt := range []struct {
		seconds int64
		years   [2]int
	}{
		{math.MaxInt64, [2]int{2038, 2262}}, {math.MinInt64, [2]int{1677, 1902}}, {1 << 40, [2]int{2038, 2262}}, {0, [2]int{before.Year(), before.Year() + 1}},
	} {
		f, d := fileOf("f", "x"), dirOf("d")
		f.ModTime, d.ModTime = time.Unix(tt.seconds, 0), time.Unix(tt.seconds, 0)
		f.Format, d.Format = tar.FormatPAX, tar.FormatPAX
		var checked bytes.Buffer
		if _, err := Check(&checked, bytes.NewReader(tarOf(t, f, d)), generous); err != nil {
			t.Errorf("%d: %v", tt.seconds, err)
			continue
		}
		dir := t.TempDir()
		if _, err := Unpack(openRoot(t, dir), &checked, generous); err != nil {
			t.Errorf("%d: %v", tt.seconds, err)
			continue
		}
		for _, name := range []string{"f", "d"} {
			fi, err := os.Stat(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			if year := fi.ModTime().Year(); year < tt.years[0] || year > tt.years[1] {
				t.Errorf("%d: %s: got %v", tt.seconds, name, fi.ModTime())
			}
		}
	}
}

func TestPackPaths(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, 0o755, "sh", dir, "bin/run.sh")
	write(t, 0o644, "1", dir, "one/f")
	write(t, 0o644, "2", dir, "two/g")
	write(t, 0o644, "2", dir, "two/f")
	if err := os.Symlink("bin/run.sh", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		sources []Source // with paths below dir
		want    string
	}{
		{nil, ""},
		{[]Source{{"bin/run.sh", ""}}, "run.sh"},
		{[]Source{{"link", ""}}, "link"},
		{[]Source{{"link", "a/./b/c"}}, "a/ a/b/ a/b/c"},
		{[]Source{{"one", ""}}, "f"},
		{[]Source{{"one", "x/y"}}, "x/ x/y/ x/y/f"},
		{[]Source{{"one", "x"}, {"two/g", "x/z/g"}}, "x/ x/f x/z/ x/z/g"},
		{[]Source{{"one", "x"}, {"two/g", "x/g"}}, "x/ x/f x/g"},
	} {
		for i := range tt.sources {
			tt.sources[i].Path = filepath.Join(dir, tt.sources[i].Path)
		}
		var buf bytes.Buffer
		stats, err := PackPaths(&buf, tt.sources, Filter{}, generous)
		if got := strings.Join(names(t, buf.Bytes()), " "); err != nil || got != tt.want || stats.Entries != len(strings.Fields(tt.want)) {
			t.Errorf("%v: got %q %+v %v, want %q", tt.sources, got, stats, err, tt.want)
		}
	}
	for _, tt := range []struct {
		sources []Source
		lim     Limits
		want    string
	}{
		{[]Source{{"nothing", ""}}, generous, dir + "/nothing: no such file"},
		{[]Source{{"two", "../x"}}, generous, `"../x"`},
		{[]Source{{"two", "/x"}}, generous, `"/x"`},
		{[]Source{{"two", ""}, {"bin/run.sh", "g"}}, generous, `"g"`},
		{[]Source{{"two", ""}, {"bin/run.sh", "g/h"}}, generous, `"g"`},
		{[]Source{{"two", ""}}, Limits{1, 10}, "too large"},
		{[]Source{{"two", ""}}, Limits{10, 1}, "too many"},
	} {
		for i := range tt.sources {
			tt.sources[i].Path = filepath.Join(dir, tt.sources[i].Path)
		}
		_, err := PackPaths(io.Discard, tt.sources, Filter{}, tt.lim)
		if joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(fmt.Sprint(err), tt.want) {
			t.Errorf("%v: got %v, want %q", tt.sources, err, tt.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	good := tarOf(t, dirOf("d"), fileOf("d/f", "12345"))
	junk := slices.Clone(good)
	junk[0] ^= 1
	var many []tar.Header
	for i := range 11 {
		many = append(many, fileOf(fmt.Sprint(i), ""))
	}
	for name, tt := range map[string]struct {
		archive []byte
		want    string
	}{
		"absolute":         {tarOf(t, fileOf("/etc/passwd", "")), `"/etc/passwd"`},
		"dot dot":          {tarOf(t, fileOf("a/../../b", "")), `"a/../../b"`},
		"dot dot inside":   {tarOf(t, fileOf("a/../b", "")), `"a/../b"`},
		"dot dot dir":      {tarOf(t, dirOf("..")), `".."`},
		"no name":          {tarOf(t, fileOf("", "")), "no name"},
		"top as file":      {tarOf(t, fileOf(".", "")), "no name"},
		"top as link":      {tarOf(t, linkOf(".", "x")), "no name"},
		"file with slash":  {withSlash(tarOf(t, fileOf("ab", ""))), "slash"},
		"link with slash":  {withSlash(tarOf(t, linkOf("ab", "b"))), "slash"},
		"long element":     {tarOf(t, fileOf(strings.Repeat("n", 256), "")), "256 bytes"},
		"long name":        {tarOf(t, fileOf(strings.Repeat(strings.Repeat("n", 250)+"/", 17)+"x", "")), "4268 bytes"},
		"deep":             {tarOf(t, fileOf(strings.Repeat("d/", 2047)+"ff", "")), "4096 bytes"},
		"link: absolute":   {tarOf(t, linkOf("a", "/etc/passwd")), `"/etc/passwd"`},
		"link: out":        {tarOf(t, linkOf("a", "..")), "outside"},
		"link: out of dir": {tarOf(t, linkOf("a/b", "../../c")), "outside"},
		"link: tricks":     {tarOf(t, linkOf("a/b", "c/../..")), "beginning"},
		"link: slash":      {tarOf(t, linkOf("a/b", ".././/../x")), "outside"},
		"link to nothing":  {tarOf(t, linkOf("a", "")), "has no target"},
		"link to much":     {tarOf(t, linkOf("a", strings.Repeat("n", 4096))), "4096 bytes"},
		"below link":       {tarOf(t, dirOf("d"), linkOf("l", "d"), fileOf("l/f", "")), `"l/f"`},
		"below file":       {tarOf(t, fileOf("f", ""), fileOf("f/g/h", "")), `"f/g/h"`},
		"link over dir":    {tarOf(t, fileOf("d/f", ""), linkOf("d", "e")), `"d"`},
		"dir over link":    {tarOf(t, linkOf("d", "e"), dirOf("d")), `"d"`},
		"twice":            {tarOf(t, fileOf("f", "1"), fileOf("./f", "2")), `"f"`},
		"hard: absolute":   {tarOf(t, hardOf("g", "/etc/shadow")), `"/etc/shadow"`},
		"hard: out":        {tarOf(t, fileOf("f", "1"), hardOf("g", "d/../f")), `"d/../f"`},
		"hard: to nothing": {tarOf(t, hardOf("g", "")), `""`},
		"hard: missing":    {tarOf(t, hardOf("g", "f")), "not an earlier file"},
		"hard: later":      {tarOf(t, hardOf("g", "f"), fileOf("f", "1")), "not an earlier file"},
		"hard: itself":     {tarOf(t, hardOf("g", "g")), "not an earlier file"},
		"hard: to dir":     {tarOf(t, dirOf("d"), hardOf("g", "d")), "not an earlier file"},
		"hard: to link":    {tarOf(t, fileOf("f", "1"), linkOf("l", "f"), hardOf("g", "l")), "not an earlier file"},
		"hard: through":    {tarOf(t, dirOf("d"), fileOf("d/f", "1"), linkOf("l", "d"), hardOf("g", "l/f")), "not an earlier file"},
		"hard: implied":    {tarOf(t, fileOf("d/f", "1"), hardOf("g", "d")), "not an earlier file"},
		"hard: top":        {tarOf(t, hardOf("g", ".")), "not an earlier file"},
		"hard: as top":     {tarOf(t, fileOf("f", "1"), hardOf(".", "f")), "no name"},
		"hard: twice":      {tarOf(t, fileOf("f", "1"), fileOf("g", "1"), hardOf("g", "f")), "twice"},
		"hard: below":      {tarOf(t, fileOf("f", "1"), hardOf("g", "f"), fileOf("g/h", "")), `"g/h"`},
		"hard: too many":   {tarOf(t, append(many[:9:9], hardOf("a", "0"), hardOf("b", "0"))...), "at most 10"},
		"device":           {tarOf(t, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}), `"null"`},
		"fifo":             {tarOf(t, tar.Header{Typeflag: tar.TypeFifo, Name: "p"}), `"p"`},
		"global header":    {tarOf(t, tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "g", PAXRecords: map[string]string{"path": "x"}}), `type 'g'`},
		"too many":         {tarOf(t, many...), "at most 10"},
		"too many implied": {tarOf(t, fileOf("1/2/3/4/5/6/7/8/9/10/11", "")), "at most 10"},
		"too many again":   {tarOf(t, slices.Repeat([]tar.Header{dirOf("d")}, 11)...), "at most 10"},
		"too large":        {tarOf(t, fileOf("a", strings.Repeat("x", 60)), fileOf("b", strings.Repeat("x", 60))), "100 bytes"},
		"empty":            {nil, "is truncated"},
		"cut header":       {good[:100], "is truncated"},
		"cut at entry":     {good[:512], "is truncated"},
		"cut content":      {good[:1026], "is truncated"},
		"cut before end":   {good[:1536], "is truncated"},
		"junk":             {junk, "damaged"},
		"text":             {bytes.Repeat([]byte("hello\n"), 1000), "not a tar"},
		"more":             {append(slices.Clone(good), good...), "after its end"},
		"endless padding":  {append(slices.Clone(good), make([]byte, 2<<20)...), "after its end"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lim := Limits{Bytes: 100, Entries: 10}
			if name == "deep" || name == "long name" {
				lim = generous
			}
			_, checkErr := Check(io.Discard, bytes.NewReader(tt.archive), lim)
			_, forJobErr := UnpackForJob(openRoot(t, t.TempDir()), bytes.NewReader(tt.archive), lim)
			_, unpackErr := Unpack(openRoot(t, t.TempDir()), bytes.NewReader(tt.archive), lim)
			refused := []error{checkErr, forJobErr, unpackErr}
			if strings.HasPrefix(name, "link: ") { // into a job, it may go
				if checkErr != nil || forJobErr != nil {
					t.Errorf("got %v and %v", checkErr, forJobErr)
				}
				_, selectErr := Select(io.Discard, bytes.NewReader(tt.archive), nil)
				if joblet.KindOf(selectErr) != joblet.Internal {
					t.Errorf("Select: got %v", selectErr)
				}
				refused = refused[2:]
			}
			for _, err := range refused {
				if joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(fmt.Sprint(err), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			}
		})
	}
	// A NUL can come in by the old formats only; the first ends the name there.
	if _, err := cleanName("a\x00b"); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("NUL: got %v", err)
	}
	if err := checkTarget("a", "a\x00b"); joblet.KindOf(err) != joblet.InvalidArgument {
		t.Errorf("NUL in target: got %v", err)
	}
}

func TestCheckCleans(t *testing.T) {
	t.Parallel()
	h := fileOf(".//a/./b", "1")
	h.Mode, h.Uid, h.Gname, h.PAXRecords = 0o6755, 7, "wheel", map[string]string{"SCHILY.xattr.user.x": "1"}
	in := tarOf(t, dirOf("./"), h, dirOf("a/"), dirOf("a"), linkOf("l", "./a/"), fileOf("b\xff", ""))
	in = append(in, make([]byte, 10240)...) // as tar(1) pads
	var out bytes.Buffer
	stats, err := Check(&out, bytes.NewReader(in), Limits{Bytes: 1, Entries: 6})
	if err != nil || stats.Entries != 4 || !slices.Equal(stats.Top, []string{"a", "b\xff", "l"}) {
		t.Fatalf("got %+v %v", stats, err)
	}
	r := tar.NewReader(&out)
	for _, want := range []tar.Header{
		{Typeflag: tar.TypeReg, Name: "a/b", Mode: 0o755, Size: 1}, {Typeflag: tar.TypeDir, Name: "a/", Mode: 0o750},
		{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "./a/", Mode: 0o777}, {Typeflag: tar.TypeReg, Name: "b\xff", Mode: 0o640},
	} {
		h, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != want.Typeflag || h.Name != want.Name || h.Linkname != want.Linkname || h.Mode != want.Mode || h.Size != want.Size {
			t.Errorf("got %+v, want %+v", h, want)
		}
		delete(h.PAXRecords, "path")
		if h.Uid != 0 || h.Gname != "" || h.ModTime.Unix() != 0 || len(h.PAXRecords) != 0 {
			t.Errorf("%q has an owner, a time or more: %+v", h.Name, h)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("got %v, want the end", err)
	}
}

// TestForeignErrors says that errors of the streams are not taken for errors of
// the archive.
func TestForeignErrors(t *testing.T) {
	t.Parallel()
	archive := tarOf(t, dirOf("d"), fileOf("d/f", "12345"))
	broken := errors.New("connection lost")
	for n := range len(archive) + 1 {
		r := io.MultiReader(bytes.NewReader(archive[:n]), iotest.ErrReader(broken))
		if _, err := Check(io.Discard, r, generous); !errors.Is(err, broken) || joblet.KindOf(err) != joblet.Internal {
			t.Fatalf("read error after %d bytes: got %v", n, err)
		}
	}
	dir := t.TempDir()
	write(t, 0o644, "12345", dir, "d/f")
	for n := range len(archive) {
		for name, do := range map[string]func(io.Writer) (Stats, error){
			"Check":     func(w io.Writer) (Stats, error) { return Check(w, bytes.NewReader(archive), generous) },
			"PackTree":  func(w io.Writer) (Stats, error) { return PackTree(w, openRoot(t, dir), nil, generous) },
			"PackPaths": func(w io.Writer) (Stats, error) { return PackPaths(w, []Source{{Path: dir}}, Filter{}, generous) },
		} {
			if n%100 != 0 {
				continue
			}
			// io.EOF is what gRPC says of a broken stream.
			if _, err := do(&brokenWriter{n: n, err: io.EOF}); !errors.Is(err, io.EOF) || joblet.KindOf(err) != joblet.Internal {
				t.Fatalf("%s: write error after %d bytes: got %v", name, n, err)
			}
		}
	}
	if _, err := Select(io.Discard, bytes.NewReader(archive[:700]), nil); joblet.KindOf(err) != joblet.Internal {
		t.Errorf("a stored archive that is damaged: got %v", err)
	}
}

type brokenWriter struct {
	n   int
	err error
}

func (w *brokenWriter) Write(p []byte) (int, error) {
	if w.n -= len(p); w.n < 0 {
		return 0, w.err
	}
	return len(p), nil
}

func TestUnpackMerges(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	write(t, 0o644, "safe", outside, "f")
	archive := tarOf(t, dirOf("d"), fileOf("d/f", "new"), linkOf("l", "d/f"),
		tar.Header{Typeflag: tar.TypeDir, Name: "closed", Mode: 0}, fileOf("closed/f", "new"))
	dir := t.TempDir()
	write(t, 0o644, "kept", dir, "d/kept")
	write(t, 0o644, "old", dir, "l")
	if err := os.Symlink(filepath.Join(outside, "f"), filepath.Join(dir, "d/f")); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(openRoot(t, dir), bytes.NewReader(archive), generous); err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(filepath.Join(dir, "closed")); err != nil || fi.Mode().Perm() != 0 {
		t.Errorf("closed: got %v %v", fi, err)
	}
	if err := os.Chmod(filepath.Join(dir, "closed"), 0o700); err != nil {
		t.Fatal(err)
	}
	diff(t, list(t, dir), map[string]string{
		"d": "drwxr-xr-x", "d/kept": "-rw-r--r-- kept", "d/f": "-rw-r----- new", "l": "-> d/f", "closed": "drwx------", "closed/f": "-rw-r----- new",
	})
	diff(t, list(t, outside), map[string]string{"f": "-rw-r--r-- safe"})

	for name, archive := range map[string][]byte{
		"file over directory": tarOf(t, fileOf("d", "")),
		"link over directory": tarOf(t, linkOf("d", "x")),
		"through a link":      tarOf(t, fileOf("out/f", "evil")),
		"into a link":         tarOf(t, dirOf("out")),
		"through an own link": tarOf(t, fileOf("in/f", "evil")),
		"below a file":        tarOf(t, fileOf("l/f", "")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, 0o644, "kept", dir, "d/f")
			write(t, 0o644, "kept", dir, "l")
			for link, target := range map[string]string{"out": outside, "in": "d"} {
				if err := os.Symlink(target, filepath.Join(dir, link)); err != nil {
					t.Fatal(err)
				}
			}
			before := list(t, dir)
			_, err := Unpack(openRoot(t, dir), bytes.NewReader(archive), generous)
			if joblet.KindOf(err) != joblet.AlreadyExists {
				t.Errorf("got %v", err)
			}
			diff(t, list(t, dir), before)
			diff(t, list(t, outside), map[string]string{"f": "-rw-r--r-- safe"})
		})
	}

	t.Run("cut off", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		archive := tarOf(t, fileOf("a", "whole"), fileOf("b", strings.Repeat("x", 1000)))
		if _, err := Unpack(openRoot(t, dir), bytes.NewReader(archive[:2000]), generous); joblet.KindOf(err) != joblet.InvalidArgument {
			t.Errorf("got %v", err)
		}
		diff(t, list(t, dir), map[string]string{"a": "-rw-r----- whole"})
	})
}

func TestSelect(t *testing.T) {
	t.Parallel()
	archive := tarOf(t, dirOf("a"), fileOf("a/1", "11"), dirOf("a/b"), fileOf("a/b/2", "2"), fileOf("c/d/3", "3"), linkOf("l", "a/1"))
	for _, tt := range []struct {
		patterns []string
		want     string
		stats    Stats
	}{
		{nil, "a/ a/1 a/b/ a/b/2 c/d/3 l", Stats{Bytes: 4, Entries: 8, Top: []string{"a", "c", "l"}}},
		{[]string{"a/b/2"}, "a/ a/b/ a/b/2", Stats{Bytes: 1, Entries: 3, Top: []string{"a"}}},
		{[]string{"**/[23]"}, "a/ a/b/ a/b/2 c/d/3", Stats{Bytes: 2, Entries: 6, Top: []string{"a", "c"}}},
		{[]string{"a/b"}, "a/ a/b/ a/b/2", Stats{Bytes: 1, Entries: 3, Top: []string{"a"}}},
		{[]string{"x"}, "", Stats{}},
	} {
		m, err := NewMatcher(tt.patterns)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		stats, err := Select(&out, bytes.NewReader(archive), m.Match)
		if got := strings.Join(names(t, out.Bytes()), " "); err != nil || got != tt.want || fmt.Sprint(stats) != fmt.Sprint(tt.stats) {
			t.Errorf("%v: got %q %+v %v, want %q %+v", tt.patterns, got, stats, err, tt.want, tt.stats)
		}
	}
}

// FuzzCheck says that what passes Check can be unpacked, and that nothing is made
// outside; nor does a link lead there, of what is unpacked for anything but a job. An archive is given by its bytes, or, since chance finds
// no checksums, by lines "dNAME", "fNAME", "lNAME>TARGET" and "hNAME>TARGET".
func FuzzCheck(f *testing.F) {
	testenv.RequireRoot(f)
	f.Add(tarOf(f, dirOf("d"), fileOf("d/f", "12345"), linkOf("d/l", "../d/f")), "")
	f.Add(tarOf(f, fileOf(strings.Repeat("long/", 60)+"x", "x")), "")
	f.Add(tarOf(f, fileOf("\xff", "x"), fileOf("ü", "x"), linkOf("x", "\xfe")), "")
	f.Add([]byte{}, "fa/b/c\nla/x>b\nla/b/y>../x/c\nd./a//b")
	f.Add([]byte{}, "ll>.\nfl/f\nl../m>x/..\nd")
	f.Add([]byte{}, "ll>/etc\nlm>../../x\nfd/f\nld/n>/")
	f.Add([]byte{}, "fd/f\nhg>d/f\nhd/h>g\nll>g\nhm>l")
	f.Add([]byte{}, "ll>/etc\nhg>l/passwd\nff\nh../x>f\nhf>f")
	f.Add(tarOf(f, fileOf("f", "12345"), hardOf("d/g", "./f"), hardOf("h", "d/g")), "")
	f.Fuzz(func(t *testing.T, data []byte, lines string) {
		if lines != "" {
			data = archiveOf(lines)
		}
		lim := Limits{Bytes: 1 << 16, Entries: 100}
		var checked bytes.Buffer
		stats, err := Check(&checked, bytes.NewReader(data), lim)
		if err != nil {
			return
		}
		parent := t.TempDir()
		dir := filepath.Join(parent, "root")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		root := openRoot(t, dir)
		if _, err := Unpack(root, bytes.NewReader(checked.Bytes()), lim); err != nil {
			if joblet.KindOf(err) != joblet.InvalidArgument || !strings.Contains(err.Error(), "the link's target") {
				t.Fatal(err)
			}
			if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
				t.Fatal(err)
			}
			unpacked, err := UnpackForJob(openRoot(t, dir), bytes.NewReader(checked.Bytes()), lim)
			if err != nil || fmt.Sprint(unpacked) != fmt.Sprint(stats) {
				t.Fatalf("checked: %+v; unpacked: %+v %v", stats, unpacked, err)
			}
			if found, err := os.ReadDir(parent); err != nil || len(found) != 1 {
				t.Fatalf("outside: %v %v", found, err)
			}
			return
		}
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
		root = openRoot(t, dir)
		unpacked, err := Unpack(root, bytes.NewReader(checked.Bytes()), lim)
		if err != nil || fmt.Sprint(unpacked) != fmt.Sprint(stats) {
			t.Fatalf("checked: %+v; unpacked: %+v %v", stats, unpacked, err)
		}
		if found, err := os.ReadDir(parent); err != nil || len(found) != 1 {
			t.Fatalf("outside: %v %v", found, err)
		}
		for _, h := range slices.Sorted(maps.Keys(linksOf(t, checked.Bytes()))) {
			// os.Root refuses what leads outside, on whatever way.
			if _, err := root.Stat(h); err != nil && strings.Contains(err.Error(), "escapes") {
				t.Errorf("%q: %v", h, err)
			}
		}
		var again bytes.Buffer
		if packed, err := PackTree(&again, root, nil, Limits{math.MaxInt64, 1000}); err != nil || packed.Skipped != 0 || packed.Bytes != stats.Bytes || packed.Entries != stats.Entries {
			// As a user other than root, a closed directory cannot be read.
			if os.Geteuid() == 0 {
				t.Errorf("checked: %+v; packed again: %+v %v", stats, packed, err)
			}
		}
		if err := Verify(&again); err != nil {
			t.Errorf("packed again: %v", err)
		}
	})
}

func archiveOf(lines string) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for line := range strings.SplitSeq(lines, "\n") {
		if line == "" {
			continue
		}
		name, target, _ := strings.Cut(line[1:], ">")
		h := fileOf(name, "")
		switch line[0] {
		case 'd':
			h = dirOf(name)
			h.Mode = int64(len(target))
		case 'l':
			h = linkOf(name, target)
		case 'h':
			h = hardOf(name, target)
		}
		_ = w.WriteHeader(&h) // what cannot be written is left out
	}
	_ = w.Close()
	return buf.Bytes()
}

func linksOf(t testing.TB, archive []byte) map[string]bool {
	links := map[string]bool{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return links
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeSymlink {
			links[h.Name] = true
		}
	}
}

// TestCutShort: an archive is refused wherever it ends before its end.
func TestCutShort(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, 0o644, strings.Repeat("\x00", 1000), dir, "file")
	if err := os.Chtimes(filepath.Join(dir, "file"), time.Time{}, time.Unix(5, 123456789)); err != nil { // in an extended header
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if _, err := PackTree(&whole, openRoot(t, dir), nil, DefaultLimits); err != nil {
		t.Fatal(err)
	}
	least := whole.Len() - tarBlock // one of the two blocks of zeros is enough
	for n := range whole.Len() {
		if _, err := Check(io.Discard, bytes.NewReader(whole.Bytes()[:n]), DefaultLimits); (err == nil) != (n == least) {
			t.Errorf("cut at %d of %d bytes: %v", n, whole.Len(), err)
		}
	}
}
