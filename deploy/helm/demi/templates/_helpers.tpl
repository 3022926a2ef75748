{{- define "demi.selector" -}}
app.kubernetes.io/name: demi
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "demi.metadata" -}}
name: {{ .Release.Name }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "demi.selector" . | nindent 2 }}
  app.kubernetes.io/managed-by: {{ .Release.Service }}
  helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- /* Whether the number of replicas follows the load. */ -}}
{{- define "demi.scales" -}}
{{- if and .Values.scaling.enabled (lt (int .Values.replicas.min) (int .Values.replicas.max)) -}}
true
{{- end -}}
{{- end }}
