// Package fault marks the places at which the tests kill the daemon. In a build
// without the tag "fault", which is every build but that of the crash tests, a
// mark is nothing.
package fault
