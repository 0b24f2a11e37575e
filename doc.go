// Package joblet holds the words of the project: what a user may ask for
// (Spec), what became of it (Job, State, Exit) and the kinds of failure every
// layer speaks of (Error). It parses and validates and does no I/O; it imports
// the standard library alone, so that the daemon, the client and the tools may
// all share it.
//
// Everything that isolates and runs jobs lives under internal/, because its
// contracts are between the parts of one build and change with it. Programs
// talk to a daemon through package client.
package joblet
