package hostcheck

import (
	"os"
	"testing"

	"github.com/joblet/joblet/internal/sandbox/native"
	"github.com/joblet/joblet/internal/shim"
)

// TestMain makes this program the shim when an engine starts it as one: the tests run
// without scripts/build.
func TestMain(m *testing.M) {
	if os.Args[0] == native.ShimName {
		os.Exit(shim.Main())
	}
	native.SetBuiltinShim()
	os.Exit(m.Run())
}
