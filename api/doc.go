// Package api is the daemon's gRPC API: joblet.proto and the messages that
// protoc makes of it. Package jobletgrpc below has the services.
package api

//go:generate ./generate.sh
