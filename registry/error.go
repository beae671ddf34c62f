package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
)

// The codes that murder answers with of its own: those of the distribution
// spec 1.1 ("Error Codes"), and the last two of the CNCF registry's, for
// which the spec has none.
const (
	CodeBlobUnknown     = "BLOB_UNKNOWN"
	CodeDenied          = "DENIED"
	CodeDigestInvalid   = "DIGEST_INVALID"
	CodeManifestUnknown = "MANIFEST_UNKNOWN"
	CodeNameInvalid     = "NAME_INVALID"
	CodeNameUnknown     = "NAME_UNKNOWN"
	CodeTooManyRequests = "TOOMANYREQUESTS"
	CodeUnauthorized    = "UNAUTHORIZED"
	CodeUnsupported     = "UNSUPPORTED"
	CodeRangeInvalid    = "RANGE_INVALID"
	CodeUnavailable     = "UNAVAILABLE"
)

// ErrUnreachable is in the chain of an error where no answer came at all, as
// opposed to one that is of no use.
var ErrUnreachable = errors.New("not reachable")

// Error is an answer that is not the content asked for, in the protocol's
// form. Where a registry gave it, Body holds the registry's own words.
type Error struct {
	Status  int
	Code    string
	Message string
	Header  http.Header // challenge, Retry-After, Content-Range; may be nil
	Body    []byte      // the upstream's body, relayed as it is; nil = made of Code and Message
	err     error       // what it came from, for errors.Is; may be nil
}

func newError(status int, code, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Status: status, Code: code, Message: err.Error(), err: err}
}

// Unavailable is the error for content that cannot be had now because of
// whom cause names: 502, and no verdict of the registry on the puller.
func Unavailable(format string, cause ...any) *Error {
	return newError(http.StatusBadGateway, CodeUnavailable, format, cause...)
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.err }

// Refused tells a registry's verdict on the request (unauthorized, denied,
// unknown, too many) from a failure to get one. A verdict is relayed; after
// a failure the next way is tried.
func Refused(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status < 500
}

// Unauthorized is true for a 401.
func Unauthorized(err error) bool { return hasStatus(err, http.StatusUnauthorized) }

func hasStatus(err error, statuses ...int) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && slices.Contains(statuses, e.Status)
}

// decided is true for an answer to the question whether the caller may have
// what they ask for. To be told to ask later is none.
func decided(err error) bool {
	return Refused(err) && !hasStatus(err, http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests)
}

// TurnedAway is true for a verdict on the caller: not logged in, or not
// allowed. Some registries say 403 to a token that is not theirs.
func TurnedAway(err error) bool {
	return hasStatus(err, http.StatusUnauthorized, http.StatusForbidden)
}

// WriteError sends err in the protocol's JSON form. What is not an [*Error]
// is a 500 whose words stay inside.
func WriteError(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Status: http.StatusInternalServerError, Code: "UNKNOWN", Message: "internal error"}
	}
	header := w.Header()
	for key, values := range e.Header {
		header[key] = values
	}
	body := e.Body
	if body == nil {
		body = e.json()
	}
	header.Set("Content-Type", "application/json; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(e.Status)
	if r.Method != http.MethodHead {
		w.Write(body)
	}
}

func (e *Error) json() []byte {
	type item struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	body, err := json.Marshal(map[string][]item{"errors": {{e.Code, e.Message}}})
	if err != nil {
		return []byte(`{"errors":[]}`)
	}
	return append(body, '\n')
}
