package term

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/charmbracelet/x/vt"

	"github.com/joblet/joblet"
)

// modes are the private modes of a terminal (DECSET) that something written to
// it has switched on, and those that are on from the start and were switched
// off.
type modes struct {
	changed map[int]bool // mode → on
	keypad  bool         // DECKPAM

	state  scanState
	params []byte
}

type scanState uint8

const (
	scanText scanState = iota
	scanEsc
	scanCSI
	scanPrivate // CSI ?
)

// onAtFirst are the modes that a terminal has on by itself: to wrap lines, and to
// show the cursor.
var onAtFirst = []int{7, 25}

// write notes what of p changes modes.
func (m *modes) write(p []byte) {
	for _, c := range p {
		switch m.state {
		case scanText:
			if c == 0x1b {
				m.state = scanEsc
			}
		case scanEsc:
			m.state = scanText
			switch c {
			case '[':
				m.state = scanCSI
			case 0x1b:
				m.state = scanEsc
			case '=', '>':
				m.keypad = c == '='
			case 'c': // RIS
				m.changed, m.keypad = nil, false
			}
		case scanCSI, scanPrivate:
			switch {
			case c == '?' && m.state == scanCSI && len(m.params) == 0:
				m.state = scanPrivate
			case c >= 0x20 && c < 0x40:
				if m.params = append(m.params, c); len(m.params) > 64 {
					m.params, m.state = m.params[:0], scanText
				}
			default:
				if m.state == scanPrivate && (c == 'h' || c == 'l') {
					m.set(string(m.params), c == 'h')
				}
				m.params, m.state = m.params[:0], scanText
				if c == 0x1b {
					m.state = scanEsc
				}
			}
		}
	}
}

func (m *modes) set(params string, on bool) {
	for text := range strings.SplitSeq(params, ";") {
		mode, err := strconv.Atoi(text)
		if err != nil || mode < 1 || mode > 99999 || len(m.changed) > 256 {
			continue
		}
		if m.changed == nil {
			m.changed = map[int]bool{}
		}
		if m.changed[mode] = on; on == slices.Contains(onAtFirst, mode) {
			delete(m.changed, mode)
		}
	}
}

// altScreens are the modes that switch to the alternate screen.
var altScreens = []int{47, 1047, 1049}

// reset returns what puts the terminal back, and forgets.
func (m *modes) reset() string {
	var b strings.Builder
	for _, mode := range sortedModes(m.changed) {
		fmt.Fprintf(&b, "\x1b[?%d%c", mode, onOff(!m.changed[mode]))
	}
	if m.keypad {
		b.WriteString("\x1b>")
	}
	if b.Len() > 0 {
		b.WriteString("\x1b[m")
	}
	*m = modes{}
	return b.String()
}

// again returns what switches the modes on at another terminal; the alternate
// screen comes first, for it is empty then.
func (m *modes) again() string {
	var b strings.Builder
	order := sortedModes(m.changed)
	slices.SortStableFunc(order, func(a, b int) int {
		return boolInt(slices.Contains(altScreens, b)) - boolInt(slices.Contains(altScreens, a))
	})
	for _, mode := range order {
		fmt.Fprintf(&b, "\x1b[?%d%c", mode, onOff(m.changed[mode]))
	}
	if m.keypad {
		b.WriteString("\x1b=")
	}
	return b.String()
}

func sortedModes(m map[int]bool) []int {
	var list []int
	for mode := range m {
		list = append(list, mode)
	}
	slices.Sort(list)
	return list
}

func onOff(on bool) byte {
	if on {
		return 'h'
	}
	return 'l'
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// ScreenTail is how much of a job's output goes into the screen that someone
// who attaches sees at first.
const ScreenTail = 256 << 10

// Repaint draws the screen of a job whose terminal others have seen so far. Its
// output is not simply shown again: it asks questions which the terminal
// would answer once more, rings bells, and may begin in the middle of a sequence.
// An emulated terminal takes it, and what is on its screen then is drawn.
type Repaint struct {
	Until  int64 // output from this offset on is not the emulated terminal's
	screen *vt.Emulator
	modes  modes
	broken bool
	took   time.Duration
}

// NewRepaint returns an emulated terminal of the given size for output before until.
func NewRepaint(window joblet.WindowSize, until int64) *Repaint {
	if window.Validate() != nil {
		window = joblet.DefaultWindow
	}
	r := &Repaint{Until: until, screen: vt.NewEmulator(window.Columns, window.Rows)}
	if answers, ok := r.screen.InputPipe().(io.Closer); ok {
		_ = answers.Close() // nobody hears them: they need not wait for a reader
	}
	return r
}

// Write takes output at an offset and returns what of it is newer than the
// screen, and whether the screen is complete.
func (r *Repaint) Write(offset int64, p []byte) (rest []byte, done bool) {
	old := min(max(r.Until-offset, 0), int64(len(p)))
	r.modes.write(p[:old])
	r.emulate(p[:old])
	return p[old:], offset+int64(len(p)) >= r.Until
}

// emulatePatience is how long the emulated terminal may take: some sequences are
// short and mean much work.
const emulatePatience = 2 * time.Second

// emulate feeds the emulated terminal. What a job writes may be anything, also
// what the emulator has not met: then there is no screen to draw, and the
// program draws its own when it is told to.
func (r *Repaint) emulate(p []byte) {
	defer func() {
		if recover() != nil {
			r.broken = true
		}
	}()
	begin := time.Now()
	for piece := range slices.Chunk(p, 1024) {
		if r.broken = r.broken || r.took+time.Since(begin) > emulatePatience; r.broken {
			break
		}
		_, _ = r.screen.Write(piece)
	}
	r.took += time.Since(begin)
}

// Paint returns what draws the screen on a window.
func (r *Repaint) Paint(window joblet.WindowSize) (out string) {
	defer func() {
		if recover() != nil {
			out = r.modes.again()
		}
	}()
	if r.broken {
		return r.modes.again()
	}
	lines := strings.Split(r.screen.Render(), "\n")
	at := r.screen.CursorPosition()
	first := 0
	if extra := len(lines) - window.Rows; extra > 0 { // a window less high: what is around the cursor
		first = min(extra, max(0, at.Y-window.Rows+1))
	}
	var b strings.Builder
	b.WriteString(r.modes.again())
	b.WriteString("\x1b[m\x1b[H\x1b[2J\x1b[?7l") // a line too long for the window is cut
	for i, line := range lines[first:min(len(lines), first+window.Rows)] {
		if line = strings.TrimRight(line, "\r "); line != "" {
			fmt.Fprintf(&b, "\x1b[%dH%s\x1b[m", i+1, line)
		}
	}
	if on, set := r.modes.changed[7]; !set || on {
		b.WriteString("\x1b[?7h")
	}
	fmt.Fprintf(&b, "\x1b[%d;%dH", at.Y-first+1, min(at.X+1, window.Columns))
	return b.String()
}
