package archive

import (
	"errors"
	"os"
	"syscall"
)

const (
	seekData = 3 // lseek(2)
	seekHole = 4
)

// dataOf returns the pieces of a file's first size bytes that hold data; nil when there
// are no holes, or the file system does not report them.
func dataOf(f *os.File, size int64) []extent {
	extents := []extent{}
	for at := int64(0); at < size; {
		begin, err := f.Seek(at, seekData)
		if errors.Is(err, syscall.ENXIO) || err == nil && begin >= size { // a hole up to the end
			break
		}
		if err != nil {
			return nil
		}
		end, err := f.Seek(begin, seekHole)
		if err != nil || end <= begin {
			return nil
		}
		if len(extents) == maxExtents-1 {
			end = size
		}
		end = min(end, size)
		extents = append(extents, extent{begin, end - begin})
		at = end
	}
	if size == 0 || len(extents) == 1 && extents[0] == (extent{0, size}) {
		return nil
	}
	if n := len(extents); n == 0 || extents[n-1].offset+extents[n-1].length < size {
		extents = append(extents, extent{size, 0}) // so that GNU tar sees the hole at the end
	}
	return extents
}
