package archive

import "io/fs"

const nonblock = 0

func device(fs.FileInfo) *uint64 { return nil }
