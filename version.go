package joblet

import (
	_ "embed"
	"runtime"
	"runtime/debug"
	"strings"
)

//go:embed VERSION
var versionFile string

// BuildInfo says what the running program was built from.
type BuildInfo struct {
	Version  string `json:"version"`
	Commit   string `json:"commit,omitempty"`     // empty when the build did not know
	Modified bool   `json:"modified,omitempty"`   // the tree differed from Commit
	Date     string `json:"build_date,omitempty"` // of Commit, RFC 3339
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// Build returns the running program's BuildInfo.
func Build() BuildInfo {
	b := BuildInfo{
		Version:  strings.TrimSpace(versionFile),
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Commit = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			case "vcs.time":
				b.Date = s.Value
			}
		}
	}
	return b
}

// String returns it as one line: "0.1.0 (1a2b3c4d5e6f, go1.26.0 linux/amd64)".
func (b BuildInfo) String() string {
	commit := ""
	if b.Commit != "" {
		commit = b.Commit[:min(12, len(b.Commit))]
		if b.Modified {
			commit += "+"
		}
		commit += ", "
	}
	return b.Version + " (" + commit + b.Go + " " + b.Platform + ")"
}
