package server

import (
	"context"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/joblet/joblet"
	"github.com/joblet/joblet/internal/server/admission"
	"github.com/joblet/joblet/internal/wire"
)

// unary is what every call without a stream passes through.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	request := admission.RequestOf(ctx)
	request.Handled(nil)
	defer request.Done()
	start := time.Now()
	err = s.call(ctx, info.FullMethod, func(ctx context.Context) (err error) {
		if request.Refused() {
			return admission.ErrTooMuch
		}
		if err = s.checkJob(ctx, callerOf(ctx), info.FullMethod, req, true); err == nil {
			resp, err = handler(ctx, req)
		}
		if err != nil && request.Refused() {
			return admission.ErrTooMuch
		}
		return err
	})
	if s.audited(info.FullMethod, err) {
		s.audit.record(callerOf(ctx), info.FullMethod, about(req), about(resp), start, err)
	}
	if err != nil {
		return nil, err // a handler's half answer is none
	}
	return resp, nil
}

// stream is the same for the others.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	cs := &callStream{ServerStream: ss, request: admission.RequestOf(ss.Context()), response: admission.ResponseOf(ss.Context()), ctx: ss.Context(), server: s, method: info.FullMethod, start: time.Now()}
	err := s.call(ss.Context(), info.FullMethod, func(ctx context.Context) error {
		ctx, end := context.WithCancelCause(ctx)
		defer end(nil)
		cs.ctx = ctx
		cs.request.Handled(end)
		defer cs.request.Done()
		defer cs.response.Release()
		err := handler(srv, cs)
		if err != nil && cs.request.Refused() {
			return admission.ErrTooMuch
		}
		return err
	})
	cs.noted(subject{}, err)
	return err
}

// audited reports whether the audit log gets a line: a call changes something, or
// was refused.
func (s *Server) audited(method string, err error) bool {
	return s.audit != nil && (changes(method) || status.Code(err) == codes.PermissionDenied)
}

// ownMethods is what the names of methods begin with that are not gRPC's own.
const ownMethods = "/joblet."

// foreignAnswer is as much as one of gRPC's services answers to one message.
const foreignAnswer = 128 << 10

type callStream struct {
	grpc.ServerStream
	request  *admission.Request // nil: root's
	response *admission.Response
	ctx      context.Context
	server   *Server
	method   string
	start    time.Time

	first bool    // the first message is here
	about subject // the first message

	told atomic.Bool // the audit log has its line
}

func (s *callStream) Context() context.Context { return s.ctx }

// RecvMsg looks at each message that names a job: the first one has to, if the
// call is about one.
func (s *callStream) RecvMsg(m any) error {
	s.request.Release() // whoever wants the next message has done with the one before
	err := s.request.Receive(s.ServerStream, m)
	if err == nil {
		err = withdrawn(s.ctx) // the handler perhaps waits for a caller who does not read, and takes what he types
	}
	if err != nil {
		return err
	}
	if !strings.HasPrefix(s.method, ownMethods) {
		// The handler is gRPC's and answers each message, with much perhaps: none is
		// made before there is room for it.
		if err := s.response.Reserve(s.ctx, foreignAnswer, nil); err != nil {
			return err
		}
	}
	named := !s.first
	s.first = true
	err = s.server.checkJob(s.ctx, callerOf(s.ctx), s.method, m, named)
	if named {
		s.about = about(m)
	}
	return err
}

// SendMsg notes a call that goes on once it is known which job it is about: that
// of its request, or the one that it has made.
func (s *callStream) SendMsg(m any) error {
	if err := withdrawn(s.ctx); err != nil {
		return err
	}
	if s.server.audit != nil && !s.told.Load() && changes(s.method) {
		if answer := about(m); answer.job != "" || accessOf(s.method) == controls {
			s.noted(answer, nil)
		}
	}
	if !s.server.methods[s.method].IsClientStream {
		s.request.Release() // who answers has taken what was asked
	}
	out, err := s.response.Outgoing(s.ctx, m, true)
	if err != nil {
		return err
	}
	defer out.Discard()
	return s.ServerStream.SendMsg(out)
}

func (s *callStream) noted(answer subject, err error) {
	if s.server.audited(s.method, err) && !s.told.Swap(true) {
		s.server.audit.record(callerOf(s.ServerStream.Context()), s.method, s.about, answer, s.start, err)
	}
}

// call decides whether the caller may, runs handle under a context that ends
// with the daemon, and turns what goes wrong into a status.
func (s *Server) call(ctx context.Context, method string, handle func(context.Context) error) (err error) {
	s.activity.begin()
	defer s.activity.end()
	s.metrics.CallBegins()
	begun := time.Now()
	defer func() {
		s.metrics.CallEnded(strings.TrimPrefix(method, "/"), status.Code(err).String(), time.Since(begun))
	}()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("panic in a call", "method", method, "panic", p, "stack", string(debug.Stack()))
			err, _ = wire.ErrorToStatus(wire.ErrInternal)
		}
	}()
	caller := callerOf(ctx)
	open := &openCall{caller: caller, end: cancel}
	defer s.ruled.remove(open)
	ctx = context.WithValue(ctx, openCallKey{}, open)
	if err = s.stillGood(caller); err == nil {
		err = authorize(caller, method)
	}
	if err == nil {
		err = handle(ctx)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && context.Cause(ctx) == errStopping {
		err = errStopping
	} else if reason := withdrawn(ctx); reason != nil {
		err = reason
	}
	sent, forLog := wire.ErrorToStatus(err)
	if forLog {
		s.log.LogAttrs(ctx, slog.LevelError, "call failed",
			slog.String("method", method), slog.String("caller", caller.name()), slog.Any("error", err))
	}
	return sent
}

// stillGood reports why a caller who was let in would not be any more.
func (s *Server) stillGood(c caller) error {
	if c.cert == nil {
		return nil
	}
	if err := s.pki.Check(c.cert); err != nil {
		return joblet.Errorf(joblet.PermissionDenied, "%w", err)
	}
	return nil
}
