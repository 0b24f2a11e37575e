package server

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/joblet/joblet/internal/service"
)

// about returns what a request is about, for the audit log: of a call that ends before
// its operation begins, as the request is not valid or the caller may not do that.
func about(message any) (s service.Subject) {
	m, ok := message.(proto.Message)
	if !ok || m == nil {
		return s
	}
	s.Job, s.Target = jobRefIn(m.ProtoReflect(), true), targetIn(m.ProtoReflect(), true)
	if r, ok := m.(interface{ GetYamlContent() string }); ok {
		s.Target = service.RecipeName(r.GetYamlContent())
	}
	return s
}

// jobRefIn returns the job that a message names, itself or in a message that it holds.
func jobRefIn(m protoreflect.Message, deeper bool) string {
	fields := m.Descriptor().Fields()
	for _, name := range []protoreflect.Name{"uuid", "job_uuid"} {
		if f := fields.ByName(name); f != nil && f.Kind() == protoreflect.StringKind && !f.IsList() {
			return m.Get(f).String()
		}
	}
	if !deeper {
		return ""
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.Message() == nil || f.IsList() || f.IsMap() || !m.Has(f) {
			continue
		}
		if ref := jobRefIn(m.Get(f).Message(), false); ref != "" {
			return ref
		}
	}
	return ""
}

// targetIn returns the command, or the runtime, network or volume, that a message names.
func targetIn(m protoreflect.Message, deeper bool) string {
	fields := m.Descriptor().Fields()
	for _, name := range []protoreflect.Name{"command", "runtime", "name"} {
		if f := fields.ByName(name); f != nil && f.Kind() == protoreflect.StringKind && !f.IsList() {
			if s := m.Get(f).String(); s != "" {
				return s
			}
		}
	}
	for i := range fields.Len() {
		f := fields.Get(i)
		if !deeper || f.Message() == nil || f.IsList() || f.IsMap() || !m.Has(f) {
			continue
		}
		if s := targetIn(m.Get(f).Message(), false); s != "" {
			return s
		}
	}
	return ""
}
