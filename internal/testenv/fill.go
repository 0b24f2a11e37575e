package testenv

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/joblet/joblet"
)

// Fill sets v and every field in it to values that differ from zero and, by seed,
// from each other, so that a field which a conversion forgets shows as a difference.
func Fill(t *testing.T, v reflect.Value, seed *int64) {
	t.Helper()
	*seed++
	switch v.Interface().(type) {
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1_700_000_000+*seed, 123_456_789).UTC()))
		return
	case time.Duration:
		v.SetInt(*seed * int64(time.Second))
		return
	case joblet.State:
		v.Set(reflect.ValueOf(joblet.Failed))
		return
	case joblet.Kind:
		v.Set(reflect.ValueOf(joblet.NotExecutable))
		return
	case joblet.LabelMatch: // with a value, or any
		m := joblet.LabelMatch{Name: fmt.Sprintf("label/%d", *seed), Any: *seed%2 == 0}
		if !m.Any {
			m.Value = "v=w"
		}
		v.Set(reflect.ValueOf(m))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			Fill(t, v.Field(i), seed)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		Fill(t, v.Elem(), seed)
	case reflect.String:
		v.SetString(fmt.Sprintf("text-%d", *seed))
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(1 + *seed%60)
	case reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*seed))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(float64(*seed) + 0.5)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			Fill(t, v.Index(i), seed)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		value := reflect.New(v.Type().Elem()).Elem()
		Fill(t, value, seed)
		v.SetMapIndex(reflect.ValueOf(fmt.Sprintf("KEY_%d", *seed)), value)
	default:
		t.Fatalf("Fill: no rule for %s", v.Type())
	}
	if v.IsZero() {
		t.Fatalf("Fill: %s is still zero", v.Type())
	}
}

// Filled returns a value whose every field is set, see Fill.
func Filled[T any](t *testing.T) T {
	t.Helper()
	var v T
	var seed int64
	Fill(t, reflect.ValueOf(&v).Elem(), &seed)
	return v
}
