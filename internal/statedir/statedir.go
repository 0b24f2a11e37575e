// Package statedir is the daemon's state directory: the names in it, and how a daemon
// tells the directory from a copy and the present start of the host from another.
package statedir

// DamagedName is the directory in the state directory to which damaged files of
// the database go.
const DamagedName = "damaged"

// LostFound is where directories go that nobody can make a job of.
const LostFound = "lost+found"
