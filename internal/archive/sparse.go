package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"strconv"
	"strings"
)

// Holes. A file with holes is in an archive as GNU's sparse format 0.1 for pax has
// it: a list of the pieces that hold data, and the pieces. tar, bsdtar and Go's
// archive/tar restore it. Go's does so by zeros only, which for a hole of a
// terabyte takes minutes, and writes no such entries at all. So inside of this
// program the format's keywords are disguised, and such an entry is an ordinary
// one with the pieces as its content: hideHoles disguises what is read,
// showHoles uncovers what is written.

// extent is a piece of a file that holds data.
type extent struct{ offset, length int64 }

const (
	keyPrefix    = "GNU.sparse."
	hiddenPrefix = "GNU_sparse." // as long
	keySize      = "size"
	keyBlocks    = "numblocks"
	keyMap       = "map"
	keyName      = "name"

	// maxExtents bounds the pieces of one file: the list of more is longer than
	// readers take (1 MiB). What is behind the last is one piece.
	maxExtents = 16_384

	tarBlock = 512
	// maxExtended is how long an extended header can be that holds such a list.
	maxExtended = 1 << 20
)

// sparseRecords returns the disguised records for a file.
func sparseRecords(size int64, extents []extent) map[string]string {
	list := make([]byte, 0, 16*len(extents))
	for i, e := range extents {
		if i > 0 {
			list = append(list, ',')
		}
		list = strconv.AppendInt(list, e.offset, 10)
		list = append(list, ',')
		list = strconv.AppendInt(list, e.length, 10)
	}
	return map[string]string{
		hiddenPrefix + keySize:   strconv.FormatInt(size, 10),
		hiddenPrefix + keyBlocks: strconv.Itoa(len(extents)),
		hiddenPrefix + keyMap:    string(list),
	}
}

// readSparse returns what the disguised records of an entry say; no extents when
// it is not a file with holes. It restores the entry's name.
func readSparse(h *tar.Header) (size int64, extents []extent, err error) {
	list, ok := h.PAXRecords[hiddenPrefix+keyMap]
	if !ok || h.Typeflag != tar.TypeReg {
		return 0, nil, nil
	}
	if name := h.PAXRecords[hiddenPrefix+keyName]; name != "" {
		h.Name = name
	}
	size, err = strconv.ParseInt(h.PAXRecords[hiddenPrefix+keySize], 10, 64)
	if err != nil || size < 0 {
		return 0, nil, errors.New("the sparse file has no length")
	}
	extents = []extent{} // also a file that is one hole
	var stored, end int64
	for list != "" {
		var offset, length string
		offset, list, _ = strings.Cut(list, ",")
		length, list, _ = strings.Cut(list, ",")
		e := extent{}
		var err1, err2 error
		e.offset, err1 = strconv.ParseInt(offset, 10, 64)
		e.length, err2 = strconv.ParseInt(length, 10, 64)
		if err1 != nil || err2 != nil || e.offset < end || e.length < 0 || e.length > math.MaxInt64-e.offset || e.offset+e.length > size || len(extents) == 2*maxExtents {
			return 0, nil, errors.New("the sparse file's list of holes is not valid")
		}
		end = e.offset + e.length
		stored += e.length
		extents = append(extents, e)
	}
	if stored != h.Size {
		return 0, nil, errors.New("the sparse file's list of holes is not valid")
	}
	return size, extents, nil
}

// framing follows the blocks of an archive. It knows no more of the format than
// where headers are, and in doubt it gives up: then nothing is changed any more.
type framing struct {
	size int64 // of the next entry's content, from its extended header; -1: its header says
	lost bool
}

// header returns how many bytes of an extended header follow a header, or else how
// many of content, both padded.
func (f *framing) header(block []byte) (extended, content int64) {
	size, ok := tarNumber(block[124:136])
	kind := block[156]
	switch {
	case f.lost, bytes.Count(block, []byte{0}) == len(block):
		return 0, 0
	case kind == tar.TypeGNUSparse || !ok: // blocks of another kind follow
		f.lost = true
		return 0, 0
	case kind == tar.TypeXHeader && size <= maxExtended:
		return padded(size), 0
	case kind == tar.TypeXHeader, kind == tar.TypeXGlobalHeader, kind == tar.TypeGNULongName, kind == tar.TypeGNULongLink:
		return 0, padded(size)
	}
	if f.size >= 0 {
		size = f.size
	}
	f.size = -1
	switch kind {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return 0, 0
	}
	return 0, padded(size)
}

// translate replaces the prefix of the format's keywords in an extended header,
// and notes the length that it gives to the next entry.
func (f *framing) translate(data []byte, from, to string) {
	if !bytes.Contains(data, []byte(from+keyMap+"=")) || bytes.Contains(data, []byte(from+"major=")) {
		from = "" // another version, or nothing of the kind
	}
	for rest := data; ; {
		digits, _, ok := bytes.Cut(rest, []byte{' '})
		n, err := strconv.Atoi(string(digits))
		if !ok || err != nil || n <= len(digits)+1 || n > len(rest) {
			return
		}
		record := rest[len(digits)+1 : n]
		rest = rest[n:]
		if value, ok := bytes.CutPrefix(record, []byte("size=")); ok {
			size, err := strconv.ParseInt(string(bytes.TrimSuffix(value, []byte{'\n'})), 10, 64)
			if f.size = size; err != nil || size < 0 || size > math.MaxInt64-tarBlock {
				f.size, f.lost = -1, true
			}
		}
		if from != "" && bytes.HasPrefix(record, []byte(from)) {
			copy(record, to)
		}
	}
}

// listLast moves the list of pieces behind the other records: GNU tar must know
// before how many there are.
func listLast(data []byte) {
	end := bytes.IndexByte(data, 0) // the padding
	if end < 0 {
		end = len(data)
	}
	for at := 0; at < end; {
		digits, _, ok := bytes.Cut(data[at:end], []byte{' '})
		n, err := strconv.Atoi(string(digits))
		if !ok || err != nil || n <= len(digits)+1 || n > end-at {
			return
		}
		if bytes.HasPrefix(data[at+len(digits)+1:], []byte(keyPrefix+keyMap+"=")) {
			list := bytes.Clone(data[at : at+n])
			copy(data[at:], data[at+n:end])
			copy(data[end-n:end], list)
			return
		}
		at += n
	}
}

func padded(n int64) int64 { return (n + tarBlock - 1) / tarBlock * tarBlock }

// tarNumber reads a number of a header: octal, or binary if it is large.
func tarNumber(field []byte) (int64, bool) {
	if field[0]&0x80 != 0 {
		n := int64(field[0] & 0x3f)
		for _, b := range field[1:] {
			if n > math.MaxInt64>>9 {
				return 0, false
			}
			n = n<<8 | int64(b)
		}
		return n, field[0]&0x40 == 0 && n < math.MaxInt64-tarBlock
	}
	text := strings.Trim(string(field), " \x00")
	if text == "" {
		return 0, true
	}
	n, err := strconv.ParseInt(text, 8, 64)
	return n, err == nil && n >= 0
}

// hideHoles reads an archive and disguises its files with holes.
type hideHoles struct {
	r       io.Reader
	f       framing
	pending []byte // to be given out
	content int64  // that follows, and goes through as it is
	err     error
}

func newHideHoles(r io.Reader) *hideHoles { return &hideHoles{r: r, f: framing{size: -1}} }

func (in *hideHoles) Read(p []byte) (int, error) {
	if len(in.pending) == 0 && in.err == nil && in.content == 0 && !in.f.lost {
		in.header()
	}
	switch {
	case len(in.pending) > 0:
		n := copy(p, in.pending)
		in.pending = in.pending[n:]
		return n, nil
	case in.err != nil:
		return 0, in.err
	case in.f.lost:
		return in.r.Read(p)
	}
	n, err := in.r.Read(p[:min(int64(len(p)), in.content)])
	in.content -= int64(n)
	return n, err
}

// header reads a header, and an extended one as a whole.
func (in *hideHoles) header() {
	block := make([]byte, tarBlock)
	n, err := io.ReadFull(in.r, block)
	in.pending = block[:n]
	if err == io.ErrUnexpectedEOF {
		err = io.EOF // the reader of the archive sees what is missing
	}
	if in.err = err; err != nil {
		return
	}
	extended, content := in.f.header(block)
	in.content = content
	if extended == 0 {
		return
	}
	data := make([]byte, extended)
	n, err = io.ReadFull(in.r, data)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	if in.err = err; err == nil {
		in.f.translate(data, keyPrefix, hiddenPrefix)
	}
	in.pending = append(block, data[:n]...)
}

// showHoles writes an archive and uncovers its files with holes.
type showHoles struct {
	w       io.Writer
	f       framing
	head    []byte // a header that is not complete yet, with its extended one
	want    int64  // how long it is then
	content int64
}

func newShowHoles(w io.Writer) *showHoles {
	return &showHoles{w: w, f: framing{size: -1}, want: tarBlock}
}

func (out *showHoles) Write(p []byte) (written int, err error) {
	for len(p) > 0 {
		var n int
		switch {
		case out.f.lost:
			n, err = out.w.Write(p)
		case out.content > 0:
			n, err = out.w.Write(p[:min(int64(len(p)), out.content)])
			out.content -= int64(n)
		default:
			n = int(min(int64(len(p)), out.want-int64(len(out.head))))
			out.head = append(out.head, p[:n]...)
			err = out.header()
		}
		written += n
		if p = p[n:]; err != nil {
			return written, err
		}
	}
	return written, nil
}

func (out *showHoles) header() error {
	if int64(len(out.head)) < out.want {
		return nil
	}
	if out.want == tarBlock {
		extended, content := out.f.header(out.head)
		if out.content = content; extended > 0 {
			out.want += extended
			return nil
		}
	} else {
		out.f.translate(out.head[tarBlock:], hiddenPrefix, keyPrefix)
		listLast(out.head[tarBlock:])
	}
	_, err := out.w.Write(out.head)
	out.head, out.want = out.head[:0], tarBlock
	return err
}

// Reader reads the entries of an archive, for callers that rename them. A file with
// holes has its pieces as its content, and PAXRecords that say where they belong: an
// entry with them and this content is understood by Unpack.
type Reader struct{ *tar.Reader }

// NewReader returns a Reader of r.
func NewReader(r io.Reader) Reader { return Reader{tar.NewReader(newHideHoles(r))} }

// Next returns the next entry.
func (r Reader) Next() (*tar.Header, error) {
	h, err := r.Reader.Next()
	if err != nil || h.Typeflag == tar.TypeXGlobalHeader {
		return h, err
	}
	_, extents, err := readSparse(h)
	if err != nil {
		return nil, fmt.Errorf("archive entry %.200q: %w", h.Name, err)
	}
	maps.DeleteFunc(h.PAXRecords, func(key, _ string) bool {
		return extents == nil || !strings.HasPrefix(key, hiddenPrefix) || key == hiddenPrefix+keyName
	})
	return h, nil
}
